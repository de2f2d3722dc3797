"""All of Schemathesis' checks, two of which know rows of the contract that no schema can express.

A request that the schema allows may be refused for what was sent before it or is stored: 422 for an Idempotency-Key that was used
for another request, 400 with code 721 for identifiers that name two customers by now, 400 for an attribution header that names no
till or store.

A request that the schema forbids may be accepted, if only attribution headers are wrong: with Basic the service ignores them.
"""

import schemathesis
from schemathesis.checks import CHECKS
from schemathesis.generation.meta import negated_parameters

ATTRIBUTION = "X-CAP-API-ATTRIBUTION-"
accepts = CHECKS.get_one("positive_data_acceptance")
rejects = CHECKS.get_one("negative_data_rejection")
CHECKS.unregister("positive_data_acceptance")
CHECKS.unregister("negative_data_rejection")


@schemathesis.check
def positive_data_acceptance(ctx, response, case):
    if "/v2/coupon/bulk/issue" in case.operation.label and response.status_code in (400, 422):
        error = response.json()["errors"][0]
        if error["code"] in (422, 721) or error["message"].startswith(ATTRIBUTION):
            return None
    return accepts(ctx, response, case)


@schemathesis.check
def negative_data_rejection(ctx, response, case):
    wrong = [name for name, _ in negated_parameters(case.meta)]
    basic = response.request.headers.get("Authorization", "").startswith("Basic ")
    if basic and wrong and all(name.startswith(ATTRIBUTION) for name in wrong):
        return None
    return rejects(ctx, response, case)
