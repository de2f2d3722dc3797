use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::telemetry::Metrics;

/// Serves `/metrics` on its own port for as long as the process lives.
///
/// # Errors
/// When the port cannot be bound.
pub async fn serve_metrics(address: SocketAddr, metrics: Metrics) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("metrics.listen {address}"))?;
    let address = listener.local_addr()?;
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep();
        }
    });
    let text = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    let router = axum::Router::new().route("/metrics", get(async move || (text, metrics.render())));
    tokio::spawn(async move { axum::serve(listener, router).await });
    tracing::info!(%address, "serving metrics");
    Ok(())
}
