use super::args::ApplyArgs;
use super::output::report;
use crate::provisioning;

pub(super) async fn apply(args: ApplyArgs) -> anyhow::Result<()> {
    // Check the file first, so that mistakes are reported without a database, too.
    let plans = provisioning::read(&args.file)?;
    let connect = args.common.database().await?;
    report(provisioning::apply(&connect, &plans).await?);
    Ok(())
}
