// Shows openapi.json from beside this page. The requests that a user tries out go to the host and path that served the page, as the
// content security policy allows no other.
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
