// The load for k6, each request for another customer: RATE requests per second for SECONDS_LONG, independent of the answers, to the
// addresses in TO in turn (separated by commas). Prints one line: requests answered with 200, rejected with 503, failed otherwise, and
// not sent; then the median, 99th percentile and maximum latency of the answered requests in milliseconds, without the first second,
// in which hundreds of connections open.
import http from 'k6/http';
import exec from 'k6/execution';
import { Counter, Trend } from 'k6/metrics';

const urls = __ENV.TO.split(',').map((address) => `http://${address}/v2/coupon/bulk/issue`);
const series = __ENV.SERIES;
const params = {
  headers: { 'Content-Type': 'application/json', Authorization: __ENV.AUTHORIZATION },
  timeout: '30s',
};
const first = Number(__ENV.FIRST);
const answered = new Counter('answered');
const took = new Trend('took', true);
const turnedAway = new Counter('turned_away');
const failed = new Counter('failed');

export const options = {
  discardResponseBodies: true,
  summaryTrendStats: ['med', 'p(99)', 'max'],
  scenarios: {
    load: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE),
      timeUnit: '1s',
      duration: `${__ENV.SECONDS_LONG}s`,
      preAllocatedVUs: 200,
      maxVUs: 2000,
    },
  },
};

// As in issue.lua.
function mixed(v) {
  const m = (v * 648395) % 1048576;
  return Math.floor((m * m) / 1024);
}
function scattered(n) {
  let low = n % 1048576;
  let high = ((n - low) / 1048576 + mixed(low)) % 1048576;
  low = (low + mixed(high)) % 1048576;
  high = (high + mixed(low)) % 1048576;
  return high * 1048576 + low;
}

export default function () {
  const number = first + exec.scenario.iterationInTest;
  const customer = String(scattered(number)).padStart(13, '0');
  const body = `{"seriesIds":[${series}],"customer":{"id":"${customer}"}}`;
  const answer = http.post(urls[number % urls.length], body, params);
  if (answer.status === 200) {
    answered.add(1);
    if (Date.now() - exec.scenario.startTime >= 1000) took.add(answer.timings.duration);
  } else if (answer.status === 503) turnedAway.add(1);
  else failed.add(1);
}

export function handleSummary(data) {
  const figure = (name, value) => (data.metrics[name] ? Number(data.metrics[name].values[value].toFixed(2)) : 0);
  const figures = [
    figure('answered', 'count'), figure('turned_away', 'count'), figure('failed', 'count'), figure('dropped_iterations', 'count'),
    figure('took', 'med'), figure('took', 'p(99)'), figure('took', 'max'),
  ];
  return { stdout: figures.join(' ') + '\n' };
}
