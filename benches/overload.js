// A load at a fixed rate, whatever becomes of it: RATE requests a second for DURATION, each for another customer, to the
// services in URLS (one after the other). Prints one line: answered 200, turned away with 503, failed in any other way, not
// even sent, and what the answered ones took: median, 99th percentile and longest, in milliseconds.
import http from 'k6/http';
import { Counter, Trend } from 'k6/metrics';

const urls = __ENV.URLS.split(',');
const series = __ENV.SERIES.split(',').map(Number);
const headers = { 'Content-Type': 'application/json', Authorization: __ENV.AUTHORIZATION };
const answered = new Trend('answered', true);
const turnedAway = new Counter('turned_away');
const failed = new Counter('failed');

export const options = {
  discardResponseBodies: true,
  summaryTrendStats: ['count', 'med', 'p(99)', 'max'],
  scenarios: {
    load: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE),
      timeUnit: '1s',
      duration: __ENV.DURATION,
      preAllocatedVUs: 200,
      maxVUs: Number(__ENV.CALLERS || 2000),
    },
  },
};

let next = 0;
export default function () {
  const customer = String(Math.floor(Math.random() * 1e12));
  const url = urls[(__VU + next++) % urls.length];
  const body = JSON.stringify({ seriesIds: series, customer: { id: customer } });
  const answer = http.post(`${url}/v2/coupon/bulk/issue`, body, { headers, timeout: '30s' });
  if (answer.status === 200) answered.add(answer.timings.duration);
  else if (answer.status === 503) turnedAway.add(1);
  else failed.add(1);
}

export function handleSummary(data) {
  const of = (name, value) => (data.metrics[name] ? Math.round(data.metrics[name].values[value]) : 0);
  const figures = [
    of('answered', 'count'), of('turned_away', 'count'), of('failed', 'count'), of('dropped_iterations', 'count'),
    of('answered', 'med'), of('answered', 'p(99)'), of('answered', 'max'),
  ];
  return { stdout: figures.join(' ') + '\n' };
}
