use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};

use super::args::{ImportArgs, StatusArgs};
use super::output::{answer, complain, report};
use crate::codes::{self, ImportEvent, ImportState};
use crate::model::{Clock, OrgId, SeriesId, SystemClock};

/// Shows a progress bar on a terminal. Rejected lines go to standard error, the counts to standard output.
pub(super) async fn import(args: ImportArgs) -> anyhow::Result<()> {
    let connect = args.common.database().await?;
    let (org_id, series_id) = (OrgId(args.org), SeriesId(args.series));
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {eta} remaining")?);
    let mut on_event = |event| match event {
        ImportEvent::Started(ImportState { is_finished: true, .. }) => report("this file has been imported before"),
        ImportEvent::Started(ImportState { lines_done, .. }) if lines_done > 0 => {
            report(format_args!("continuing after line {lines_done}, where an earlier run stopped"));
        }
        ImportEvent::Started(_) => {}
        ImportEvent::Rejected { line, reason } => bar.suspend(|| complain(format_args!("line {line}: {reason}"))),
        ImportEvent::Progress { done, total } => {
            bar.set_length(total);
            bar.set_position(done);
        }
    };
    let file = args.file.display();
    let counts = if args.dry_run {
        let dry_run = codes::dry_run(&connect, org_id, series_id, &args.file, &mut on_event).await?;
        bar.finish_and_clear();
        match dry_run.layout {
            Some(layout) => report(format_args!("dry run, nothing is stored; {file} has {layout}")),
            None => report(format_args!("dry run, nothing is stored; {file} has no codes")),
        }
        dry_run.counts
    } else {
        let counts = codes::import(&connect, org_id, series_id, &args.file, &mut on_event).await?;
        bar.finish_and_clear();
        counts
    };
    let ImportState { accepted, duplicates, malformed, .. } = counts;
    report(format_args!("codes accepted: {accepted}, duplicates: {duplicates}, malformed lines: {malformed}"));
    if malformed > 0 {
        bail!("{file} has malformed lines");
    }
    Ok(())
}

pub(super) async fn status(args: StatusArgs) -> anyhow::Result<()> {
    let connect = args.common.database().await?;
    let pools = codes::status(&connect, args.org.map(OrgId), args.series.map(SeriesId), SystemClock.now()).await?;
    if pools.is_empty() { answer("no series gives out uploaded codes") } else { answer(pools) }
}
