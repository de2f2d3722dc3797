use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::header::HOST;
use axum::http::uri::PathAndQuery;
use axum::http::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(super) async fn healthcheck(url: &str) -> anyhow::Result<()> {
    let status = timeout(Duration::from_secs(5), get_status(url)).await.context("no answer in time")??;
    if !status.is_success() {
        bail!("{url} answered {status}");
    }
    Ok(())
}

async fn get_status(url: &str) -> anyhow::Result<StatusCode> {
    let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
    let host = uri.host().with_context(|| format!("{url} has no host"))?;
    let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(&address).await.with_context(|| format!("cannot connect to {address}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let request = Request::get(path).header(HOST, &address).body(Body::empty())?;
    Ok(sender.send_request(request).await?.status())
}
