use anyhow::bail;

use super::args::Common;
use super::output::{answer, report};
use crate::auth::KeySource;
use crate::config::AuthSettings;
use crate::db::Db;
use crate::model::{Clock, SystemClock};
use crate::provisioning::commands::Order;
use crate::provisioning::keys;

pub(super) async fn rotate(common: Common) -> anyhow::Result<()> {
    require_database_keys(&common.settings()?.auth)?;
    let connect = common.database().await?;
    report(keys::rotate(&connect, Order::now(&SystemClock)).await?);
    Ok(())
}

pub(super) async fn list(common: Common) -> anyhow::Result<()> {
    let settings = common.settings()?;
    require_database_keys(&settings.auth)?;
    let db = Db::new(common.database().await?, &settings.database);
    answer(keys::list(&db, SystemClock.now()).await?)
}

fn require_database_keys(settings: &AuthSettings) -> anyhow::Result<()> {
    match KeySource::of(settings) {
        KeySource::Database => Ok(()),
        KeySource::File(_) | KeySource::Value(_) => bail!(
            "the keys are those of auth.signing_keys_file or auth.signing_keys, not of the database: put a new one second, wait \
             until every replica has read it, put it first, and take the old one away once its tokens have ended"
        ),
    }
}
