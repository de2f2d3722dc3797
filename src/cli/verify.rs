use anyhow::bail;

use super::args::VerifyArgs;
use super::output::answer;
use crate::model::OrgId;
use crate::verify;

pub(super) async fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    let connect = args.common.database().await?;
    let report = verify::run(&connect, args.org.map(OrgId)).await?;
    let wrong = report.wrong();
    answer(report)?;
    if wrong > 0 {
        bail!("some invariants are violated");
    }
    Ok(())
}
