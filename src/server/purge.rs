use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::issuance::Issuer;

/// Long enough to cost nothing, short enough to keep each purge small.
const INTERVAL: Duration = Duration::from_mins(1);

/// Purges old keyed requests for as long as it is polled. Several replicas may do it at the same time: they skip each other's rows.
pub(super) async fn purge_requests(issuer: Arc<Issuer>, kept_for: Duration) {
    loop {
        match issuer.purge_requests(kept_for).await {
            Ok(0) => {}
            Ok(purged) => tracing::info!(purged, "purged old keyed requests"),
            Err(error) => tracing::warn!(%error, "old keyed requests cannot be purged now"),
        }
        sleep(INTERVAL).await;
    }
}
