use std::path::Path;

use sqlx::postgres::PgConnectOptions;

use super::file::{CodeFile, FileError, Line, Lines, Position};
use super::layout::{Layout, LineError};
use crate::db::DbError;
use crate::db::code_pool::{CodeUpload, DryRunUpload, ImportState, Refused, UploadedCode, is_pool};
use crate::model::{OrgId, SeriesId};

/// Lines in one transaction.
const MAX_BATCH_LINES: usize = 50_000;
/// Bytes of the file in one transaction. The last line may exceed it.
const MAX_BATCH_BYTES: u64 = 4 << 20;

/// Why an import did not finish. The batches that were stored stay, and the next run continues behind them.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ImportError {
    #[error("{0}: {1}")]
    File(String, #[source] FileError),
    #[error("--series {}: organisation {} has no such series", .1.0, .0.0)]
    NoSuchSeries(OrgId, SeriesId),
    #[error("--series {}: its codes are not uploaded (client_handling_type is not DISC_CODE_PIN)", .0.0)]
    NotAPool(SeriesId),
    #[error("another process is uploading codes into series {}", .0.0)]
    Busy(SeriesId),
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Reported during an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportEvent {
    /// The import starts from the state in which an earlier run stopped.
    Started(ImportState),
    /// A line was rejected. Reported after the batch is committed.
    Rejected {
        /// Counted from 1.
        line: i64,
        /// Why.
        reason: LineError,
    },
    /// Bytes of the file that are done.
    Progress {
        /// Bytes done.
        done: u64,
        /// Bytes of the file.
        total: u64,
    },
}

/// What an import would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// `None` if the file holds no codes.
    pub layout: Option<Layout>,
    /// The counts that the import would end with.
    pub counts: ImportState,
}

/// Imports a file of codes into the pool of a series, one batch per transaction. An interrupted import continues where it
/// stopped; a file that was imported completely is not imported again. Returns the counts of all runs together.
///
/// Reads the file without yielding, so the process must not do anything else meanwhile.
///
/// # Errors
/// See [`ImportError`].
pub async fn import(
    connect: &PgConnectOptions,
    org_id: OrgId,
    series_id: SeriesId,
    path: &Path,
    on_event: &mut (dyn FnMut(ImportEvent) + Send),
) -> Result<ImportState, ImportError> {
    let source = Source::open(connect, org_id, series_id, path).await?;
    let upload = CodeUpload::begin(connect, org_id, series_id, source.file.sha256.clone()).await?;
    let mut upload = upload.ok_or(ImportError::Busy(series_id))?;
    let so_far = upload.state();
    on_event(ImportEvent::Started(so_far));
    if so_far.is_finished {
        upload.end().await?;
        return Ok(so_far);
    }
    let mut lines = source.lines(so_far)?;
    while let Some(batch) = source.next_batch(&mut lines)? {
        batch.write(&mut upload, lines.position(), on_event).await?;
        on_event(ImportEvent::Progress { done: lines.position().bytes, total: source.file.bytes });
    }
    Ok(upload.finish().await?)
}

/// Does what [`import`] does, but stores nothing.
///
/// # Errors
/// See [`ImportError`].
pub async fn dry_run(
    connect: &PgConnectOptions,
    org_id: OrgId,
    series_id: SeriesId,
    path: &Path,
    on_event: &mut (dyn FnMut(ImportEvent) + Send),
) -> Result<DryRun, ImportError> {
    let source = Source::open(connect, org_id, series_id, path).await?;
    let layout = source.file.layout.clone();
    let mut upload = DryRunUpload::begin(connect, org_id, series_id, &source.file.sha256).await?;
    let so_far = upload.state();
    on_event(ImportEvent::Started(so_far));
    if so_far.is_finished {
        return Ok(DryRun { layout, counts: so_far });
    }
    let mut lines = source.lines(so_far)?;
    while let Some(batch) = source.next_batch(&mut lines)? {
        let refused = upload.add(batch.codes, batch.malformed.len()).await?;
        report_rejected(batch.malformed, refused, on_event);
        on_event(ImportEvent::Progress { done: lines.position().bytes, total: source.file.bytes });
    }
    let mut on_duplicate = |line| on_event(ImportEvent::Rejected { line, reason: LineError::Duplicate });
    let counts = upload.finish(&mut on_duplicate).await?;
    Ok(DryRun { layout, counts })
}

/// A valid file, for a series with a pool.
struct Source<'p> {
    path: &'p Path,
    file: CodeFile,
}

impl<'p> Source<'p> {
    async fn open(
        connect: &PgConnectOptions,
        org_id: OrgId,
        series_id: SeriesId,
        path: &'p Path,
    ) -> Result<Self, ImportError> {
        match is_pool(connect, org_id, series_id).await? {
            Some(true) => {}
            Some(false) => return Err(ImportError::NotAPool(series_id)),
            None => return Err(ImportError::NoSuchSeries(org_id, series_id)),
        }
        let file = CodeFile::open(path).map_err(|error| ImportError::File(path.display().to_string(), error))?;
        Ok(Self { path, file })
    }

    /// The lines behind those of an earlier run.
    fn lines(&self, so_far: ImportState) -> Result<Lines<'_>, ImportError> {
        // A negative number would be a bug. The import then starts over, and the codes of earlier runs count as duplicates.
        let bytes = u64::try_from(so_far.bytes_done).unwrap_or(0);
        self.file.lines_from(Position { bytes, lines: so_far.lines_done }).map_err(|error| self.unreadable(error))
    }

    fn next_batch(&self, lines: &mut Lines<'_>) -> Result<Option<Batch>, ImportError> {
        Batch::read(lines).map_err(|error| self.unreadable(error))
    }

    fn unreadable(&self, error: std::io::Error) -> ImportError {
        ImportError::File(self.path.display().to_string(), error.into())
    }
}

/// The lines of one transaction.
#[derive(Default)]
struct Batch {
    codes: Vec<UploadedCode>,
    malformed: Vec<(i64, LineError)>,
}

impl Batch {
    /// `None` at the end of the file.
    fn read(lines: &mut Lines<'_>) -> std::io::Result<Option<Self>> {
        let mut batch = Self::default();
        let end = lines.position().bytes + MAX_BATCH_BYTES;
        while batch.codes.len() + batch.malformed.len() < MAX_BATCH_LINES && lines.position().bytes < end {
            let Some(Line { number, content }) = lines.next()? else { break };
            match content {
                Ok((code, customer_id)) => batch.codes.push(UploadedCode { line: number, code, customer_id }),
                Err(reason) => batch.malformed.push((number, reason)),
            }
        }
        let is_empty = batch.codes.is_empty() && batch.malformed.is_empty();
        Ok((!is_empty).then_some(batch))
    }

    async fn write(
        self,
        upload: &mut CodeUpload,
        position: Position,
        on_event: &mut (dyn FnMut(ImportEvent) + Send),
    ) -> Result<(), ImportError> {
        let malformed = i64::try_from(self.malformed.len()).unwrap_or(i64::MAX);
        let bytes = i64::try_from(position.bytes).unwrap_or(i64::MAX);
        let refused = upload.write(self.codes, malformed, bytes, position.lines).await?;
        report_rejected(self.malformed, refused, on_event);
        Ok(())
    }
}

/// Reports the rejected lines of a batch in the order of the file.
fn report_rejected(malformed: Vec<(i64, LineError)>, refused: Refused, on_event: &mut (dyn FnMut(ImportEvent) + Send)) {
    let mut rejected = malformed;
    rejected.extend(refused.known.into_iter().map(|line| (line, LineError::Duplicate)));
    rejected.extend(refused.drawable.into_iter().map(|line| (line, LineError::Drawable)));
    rejected.sort_unstable_by_key(|(line, _)| *line);
    for (line, reason) in rejected {
        on_event(ImportEvent::Rejected { line, reason });
    }
}
