use std::net::{SocketAddr, TcpListener};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::args::ServeArgs;
use crate::config::SettingsError;
use crate::db::migrations::{self, SchemaError};
use crate::model::Environment;
use crate::server::{App, Stop, retry_until, serve_metrics};
use crate::telemetry;

pub(super) async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let (settings, connect) = args.common.serve_settings()?;
    let connect = connect.ok_or(SettingsError::NoDatabase)?;
    let collector = telemetry::start_logs(&settings.log, &settings.traces)?;
    let stops = stop_signals()?;
    if args.migrate {
        let migrate = async || migrations::migrate(&connect).await;
        retry_until(settings.database.startup_timeout, SchemaError::is_unavailable, migrate).await?;
    }
    let listener = bind(settings.http.listen)?;
    let metrics = telemetry::start_metrics()?;
    if let Some(address) = settings.metrics.listen {
        serve_metrics(address, metrics).await?;
    }
    let served = App::build(&settings, &connect, Environment::default()).await?.serve(listener, stops).await;
    if let Some(collector) = collector {
        collector.finish().await;
    }
    served
}

pub(super) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
}

/// Receives SIGTERM and Ctrl-C. Installs the handlers at once, so a signal during the start is not lost. Logs and ignores SIGHUP, which
/// a closing terminal sends.
pub(super) fn stop_signals() -> anyhow::Result<mpsc::Receiver<Stop>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let (stop_sender, stops) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let stop = tokio::select! {
                _ = terminate.recv() => Stop::AfterDrain,
                _ = interrupt.recv() => Stop::Now,
                _ = hang_up.recv() => {
                    tracing::info!("SIGHUP ignored: settings are read only at the start; send SIGTERM to stop the service");
                    continue;
                }
            };
            // The receiver is gone once the service has stopped.
            let _ = stop_sender.send(stop).await;
        }
    });
    Ok(stops)
}
