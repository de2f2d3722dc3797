use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use secrecy::SecretString;
use tokio::sync::mpsc;

use super::args::DemoArgs;
use super::output::report;
use super::serve::{bind, stop_signals};
use crate::config::{LogFormat, Settings};
use crate::db::migrations;
use crate::demo::{Options, PrivatePostgres};
use crate::model::{Environment, OrgId, SeriesId};
use crate::server::{App, Stop, serve_metrics};
use crate::{codes, provisioning, telemetry};

const DEMO: &str = include_str!("../../config/demo.toml");
/// For the demo's series of uploaded codes.
const GIFT_CARDS: &str = include_str!("../../config/demo_gift_cards.csv");
const ORG: OrgId = OrgId(1);
const GIFT_CARD_SERIES: SeriesId = SeriesId(106);
const DATABASE: &str = "coupon_issuer";

pub(super) async fn demo(args: DemoArgs) -> anyhow::Result<()> {
    let mut settings = Settings::load(None)?;
    settings.http.drain = Duration::ZERO;
    settings.http.public_url.get_or_insert_with(|| format!("http://{}", args.listen));
    // People read the demo's log, even if it is piped.
    if settings.log.format != LogFormat::Json {
        settings.log.format = LogFormat::Text;
    }
    let collector = telemetry::start_logs(&settings.log, &settings.traces)?;
    let stops = stop_signals()?;
    let listener = bind(args.listen)?;
    report(format_args!("Starting a private Postgres in {} ...", args.data_dir.display()));
    let options = Options { data_dir: args.data_dir.clone(), durable: true, settings: Vec::new() };
    let postgres = tokio::task::spawn_blocking(move || PrivatePostgres::start(&options)).await??;
    let served = serve_demo(&settings, &postgres, &args.data_dir, listener, stops).await;
    let stopped = tokio::task::spawn_blocking(move || postgres.stop()).await?;
    if let Some(collector) = collector {
        collector.finish().await;
    }
    served?;
    stopped.context("stopping the private Postgres")
}

async fn serve_demo(
    settings: &Settings,
    postgres: &PrivatePostgres,
    data_dir: &Path,
    listener: TcpListener,
    stops: mpsc::Receiver<Stop>,
) -> anyhow::Result<()> {
    let url = SecretString::from(postgres.url(DATABASE));
    let connect = settings.database.connect_options(Some(&url))?;
    migrations::create_database(&connect).await.context("creating the database")?;
    migrations::migrate(&connect).await?;
    report(format_args!("Applying config/demo.toml: {}", provisioning::apply_text(&connect, DEMO).await?));
    let gift_cards = data_dir.join("gift_cards.csv");
    tokio::fs::write(&gift_cards, GIFT_CARDS).await.context("writing the demo's codes")?;
    codes::import(&connect, ORG, GIFT_CARD_SERIES, &gift_cards, &mut |_event| {}).await?;
    let metrics = telemetry::start_metrics()?;
    let app = App::build(settings, &connect, Environment::default()).await?;
    report(welcome(listener.local_addr()?, settings.http.console, &postgres.psql_hint(DATABASE)));
    // Another demo or a Prometheus may use the port. The demo then runs without metrics.
    if let Some(address) = settings.metrics.listen
        && let Err(error) = serve_metrics(address, metrics).await
    {
        tracing::warn!("metrics are not served: {error:#}");
    }
    app.serve(listener, stops).await
}

fn welcome(address: SocketAddr, has_console: bool, psql: &str) -> String {
    let console = if has_console {
        format!(
            "\nThe console, for any till or client with read access (office.desk, office123): http://{address}/console\n"
        )
    } else {
        String::new()
    };
    format!(
        "
Issue two coupons:

  curl -sS -u store.server:server123 -H 'Content-Type: application/json' \\
    -d '{{\"seriesIds\":[101,102],\"customer\":{{\"id\":\"566881933\"}}}}' \\
    http://{address}/v2/coupon/bulk/issue

Or in a browser: http://{address}/docs
{console}
Look at the coupons:

  {psql} -c 'select i.series_id, i.customer_id, i.code, i.expires_on, c.xmin from issued_coupon i join coupon c using (org_id, coupon_id)'

Ctrl-C stops the service and its Postgres.
"
    )
}
