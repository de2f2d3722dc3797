// Shows openapi.json, which lies beside this page. Whatever is tried out goes to where the page comes from, under whatever
// name that was reached: the page may connect to nothing else.
"use strict";

(async () => {
  const base = new URL(".", document.baseURI);
  const at = document.getElementById("docs");
  const answer = await fetch(new URL("openapi.json", base));
  if (!answer.ok) {
    at.textContent = `openapi.json: ${answer.status} ${answer.statusText}`;
    return;
  }
  const spec = await answer.json();
  spec.servers = [{ url: base.href.replace(/\/$/, "") }];
  spec.components.securitySchemes.oauth2.flows.clientCredentials.tokenUrl = new URL("oauth/token", base).href;
  SwaggerUIBundle({
    spec,
    domNode: at,
    deepLinking: true,
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    validatorUrl: null,
  });
})();
