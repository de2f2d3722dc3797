"""All of Schemathesis' checks, one of which knows two rows of the contract.

A request that the schema allows may be refused for what was sent before it, which no schema can tell: 422 for an
Idempotency-Key that was used for another request, 400 with code 721 for identifiers that name two customers by now.
"""

import schemathesis
from schemathesis.checks import CHECKS

of_schemathesis = CHECKS.get_one("positive_data_acceptance")
CHECKS.unregister("positive_data_acceptance")


@schemathesis.check
def positive_data_acceptance(ctx, response, case):
    if case.operation.label == "POST /v2/coupon/bulk/issue" and response.status_code in (400, 422):
        if response.json()["errors"][0]["code"] in (422, 721):
            return None
    return of_schemathesis(ctx, response, case)
