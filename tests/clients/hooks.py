"""All of Schemathesis' checks, one of which knows three rows of the contract.

A request that the schema allows may be refused for what was sent before it or is stored, which no schema can tell: 422 for an
Idempotency-Key that was used for another request, 400 with code 721 for identifiers that name two customers by now, 400 for
an attribution header that names no till or store.
"""

import schemathesis
from schemathesis.checks import CHECKS

of_schemathesis = CHECKS.get_one("positive_data_acceptance")
CHECKS.unregister("positive_data_acceptance")


@schemathesis.check
def positive_data_acceptance(ctx, response, case):
    if "/v2/coupon/bulk/issue" in case.operation.label and response.status_code in (400, 422):
        error = response.json()["errors"][0]
        if error["code"] in (422, 721) or error["message"].startswith("X-CAP-API-ATTRIBUTION-"):
            return None
    return of_schemathesis(ctx, response, case)
