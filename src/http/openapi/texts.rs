//! The descriptions in the OpenAPI document. Its tables of errors come from the errors themselves. docs/contract.md says more.

use std::fmt::Write;

use super::{examples, failures};

pub(in crate::http) const ISSUING: &str = "Issuing";
pub(in crate::http) const TOKENS: &str = "Tokens";
pub(in crate::http) const SERVICE: &str = "Service";

const ISSUE: &str = "\
Each coupon is issued in its own transaction. The answer is 200 whenever the request was processed, even if every entity \
failed: look at `failureCount`, and at the `errors` of each entity. The caller needs write access.

To try again without issuing anything twice, send the same body and query with the same `Idempotency-Key`: what was issued \
comes back as it was, the rest is tried now. A key names the request within its organisation, for at least 24 hours: 1 to 255 \
printable ASCII characters, in quotes or not. With another body or query it is refused with 422; while another attempt is at \
work, with 409.

An OAuth client that acts for many tills or stores names one of its organisation in `X-CAP-API-ATTRIBUTION-ENTITY-CODE`. The coupons \
are stored under it, its store decides 735, and it needs write access, too.";

/// The description of `getReceipt`.
pub(in crate::http) const RECEIPT: &str = "\
For a till that lost the answer. Issues nothing. The caller needs read access.";

/// The description of `token`.
pub(in crate::http) const TOKEN: &str = "\
RFC 6749, client credentials. The client authenticates by Basic (`client_secret_basic`), or by `client_id` and `client_secret` \
in the form (`client_secret_post`), not by both. The token goes into `Authorization: Bearer`.";

/// The description of the whole document.
pub(super) const ABOUT: &str = "\
Issues coupons: one of each series to one customer, each in its own transaction.

Tills authenticate with Basic, with their password or its md5 (32 hex digits). OAuth clients do with a token, which they get \
from `/oauth/token` or `/v3/oauth/token/generate`. If a request has both, the token in `X-CAP-API-OAUTH-TOKEN` decides.

Every answer has `X-CAP-REQUEST-ID`, `X-Request-Id` and `X-Cap-RequestID`, all the same: the caller's, if it is up to 128 letters, digits and `-_.:/+=`, else a \
new one. The service's log has it too. Unknown fields of a request are ignored; answers may get new ones.";

/// The description of `issueCoupons`, with all errors.
pub(in crate::http) fn issue_description() -> String {
    let mut text = format!(
        "{ISSUE}\n\n### Requests that fail as a whole\n\n| HTTP | code | message | may succeed later |\n|---|---|---|---|\n"
    );
    for (_, failure) in failures::all() {
        let (status, body) = failure.body();
        let error = body.error();
        let later = if error.retryable == Some(true) { "yes" } else { "" };
        let _ = writeln!(text, "| {} | {} | {} | {later} |", status.as_u16(), error.code, error.message);
    }
    text.push_str("\n### Entities that fail\n\n| code | message | may succeed later |\n|---|---|---|\n");
    for refusal in examples::refusals() {
        let later = if refusal.is_retryable() { "yes" } else { "" };
        let _ = writeln!(text, "| {} | {} | {later} |", refusal.code(), refusal.message());
    }
    text
}
