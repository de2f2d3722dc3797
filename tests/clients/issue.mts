// A client of openapi-fetch on the types that openapi-typescript makes of the document, as they are, issues a coupon.
//
// npx openapi-typescript ../openapi.json -o api.d.ts && npx tsc -p . && npx tsx issue.mts http://127.0.0.1:8080
import createClient from "openapi-fetch";
import type { paths } from "./api";

const base = process.argv[2];
const api = createClient<paths>({ baseUrl: base });

const token = await api.POST("/oauth/token", {
  body: { grant_type: "client_credentials", client_id: "crm", client_secret: "crm-secret" },
  headers: { "Content-Type": "application/x-www-form-urlencoded" },
});
if (!token.data) throw new Error(JSON.stringify(token.error));

const basic = `Basic ${btoa("store.server:server123")}`;
for (const authorization of [basic, `Bearer ${token.data.access_token}`]) {
  const { data, error } = await api.POST("/v2/coupon/bulk/issue", {
    headers: { authorization },
    params: { query: { source: "INSTORE" }, header: { "Idempotency-Key": `typed-${authorization.length}` } },
    body: { seriesIds: [101, 999], customer: { id: "566881933" } },
  });
  if (!data) throw new Error(JSON.stringify(error));
  const [issued, refused] = data.response;
  if (!issued.result?.code || refused.errors[0].code !== 707) throw new Error(JSON.stringify(data));
  console.log(`${authorization.split(" ")[0]}: issued until ${issued.result.validTill}`);
}
