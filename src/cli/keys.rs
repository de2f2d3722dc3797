use anyhow::bail;

use super::args::Common;
use super::output::{answer, report};
use crate::auth::KeySource;
use crate::config::AuthSettings;
use crate::db::Db;
use crate::model::{Clock, SystemClock};
use crate::provisioning::commands::Invocation;
use crate::provisioning::keys;

pub(super) async fn rotate(common: Common) -> anyhow::Result<()> {
    require_database_keys(&common.settings()?.auth)?;
    let connect = common.database().await?;
    report(keys::rotate(&connect, Invocation::now(&SystemClock)).await?);
    Ok(())
}

pub(super) async fn list(common: Common) -> anyhow::Result<()> {
    let settings = common.settings()?;
    require_database_keys(&settings.auth)?;
    let db = Db::new(common.database().await?, &settings.database);
    answer(keys::list(&db, SystemClock.now()).await?)
}

fn require_database_keys(settings: &AuthSettings) -> anyhow::Result<()> {
    match KeySource::from_settings(settings) {
        KeySource::Database => Ok(()),
        KeySource::File(_) | KeySource::Value(_) => bail!(
            "the keys are in auth.signing_keys_file or auth.signing_keys, not in the database: add the new key in second position, \
             wait until every replica has read it, move it to the first position, and remove the old key once its tokens have expired"
        ),
    }
}
