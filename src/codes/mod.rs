//! The pools of `DISC_CODE_PIN` series, from the side of those who fill them: uploading a file of codes, and how long
//! what is left will last. Giving codes out is the writer's (`store::writer`), never done here.

mod file;
mod forecast;
mod layout;

use std::path::Path;

use sqlx::postgres::PgConnectOptions;

pub use self::file::FileError;
use self::file::{CodeFile, Line, Lines, Place};
pub use self::forecast::{Pools, status};
pub use self::layout::{HeaderError, Layout, LineError};
use crate::db::DbError;
pub use crate::db::code_pool::ImportState;
use crate::db::code_pool::{CodeUpload, DryRunUpload, Refused, UploadedCode, is_pool};
use crate::model::{OrgId, SeriesId};

/// Lines in one transaction, at most.
const PIECE_LINES: usize = 50_000;
/// Bytes of codes in one transaction, about at most.
const PIECE_BYTES: u64 = 4 << 20;

/// Why a file was not uploaded to its end. What was uploaded before stays, and the same command goes on from there.
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

/// What can be watched of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It begins, with what an earlier run has done of it.
    Begins(ImportState),
    /// A line was not taken. Told once it is certain.
    Rejected {
        /// Counted from 1.
        line: i64,
        /// Why.
        reason: LineError,
    },
    /// So many bytes of the file are done.
    Progress {
        /// Done.
        done: u64,
        /// In all.
        of: u64,
    },
}

/// What an upload would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// How the file was understood; `None`: there is nothing in it.
    pub layout: Option<Layout>,
    /// The counts that the upload would end with.
    pub counts: ImportState,
}

/// Uploads a file of codes into a series' pool, a piece in each transaction. A file whose upload broke goes on where it
/// stopped; one that was uploaded to its end is not uploaded again. Returns what was done with its lines, earlier runs
/// included.
///
/// Reads the file without yielding: for a process that does nothing else.
///
/// # Errors
/// See [`ImportError`].
pub async fn import(
    connect: &PgConnectOptions,
    org_id: OrgId,
    series_id: SeriesId,
    path: &Path,
    tell: &mut (dyn FnMut(Event) + Send),
) -> Result<ImportState, ImportError> {
    let source = Source::open(connect, org_id, series_id, path).await?;
    let upload = CodeUpload::begin(connect, org_id, series_id, source.file.sha256.clone()).await?;
    let mut upload = upload.ok_or(ImportError::Busy(series_id))?;
    let so_far = upload.state();
    tell(Event::Begins(so_far));
    if so_far.is_finished {
        upload.end().await?;
        return Ok(so_far);
    }
    let mut lines = source.lines(so_far)?;
    while let Some(piece) = source.piece(&mut lines)? {
        piece.write(&mut upload, lines.place(), tell).await?;
        tell(Event::Progress { done: lines.place().bytes, of: source.file.bytes });
    }
    Ok(upload.finish().await?)
}

/// Does what [`import`] does, except that nothing is stored.
///
/// # Errors
/// See [`ImportError`].
pub async fn dry_run(
    connect: &PgConnectOptions,
    org_id: OrgId,
    series_id: SeriesId,
    path: &Path,
    tell: &mut (dyn FnMut(Event) + Send),
) -> Result<DryRun, ImportError> {
    let source = Source::open(connect, org_id, series_id, path).await?;
    let layout = source.file.layout.clone();
    let mut upload = DryRunUpload::begin(connect, org_id, series_id, &source.file.sha256).await?;
    let so_far = upload.state();
    tell(Event::Begins(so_far));
    if so_far.is_finished {
        return Ok(DryRun { layout, counts: so_far });
    }
    let mut lines = source.lines(so_far)?;
    while let Some(piece) = source.piece(&mut lines)? {
        let refused = upload.add(piece.codes, piece.malformed.len()).await?;
        reject(piece.malformed, refused, tell);
        tell(Event::Progress { done: lines.place().bytes, of: source.file.bytes });
    }
    let mut told = |line| tell(Event::Rejected { line, reason: LineError::Duplicate });
    let counts = upload.finish(&mut told).await?;
    Ok(DryRun { layout, counts })
}

/// A file that is understood, for a series that takes codes.
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

    /// From where an earlier run stopped.
    fn lines(&self, so_far: ImportState) -> Result<Lines<'_>, ImportError> {
        // A number below zero would be a mistake of ours; what was uploaded before is a duplicate then.
        let bytes = u64::try_from(so_far.bytes_done).unwrap_or(0);
        self.file.lines_from(Place { bytes, lines: so_far.lines_done }).map_err(|error| self.unreadable(error))
    }

    fn piece(&self, lines: &mut Lines<'_>) -> Result<Option<Piece>, ImportError> {
        Piece::read(lines).map_err(|error| self.unreadable(error))
    }

    fn unreadable(&self, error: std::io::Error) -> ImportError {
        ImportError::File(self.path.display().to_string(), error.into())
    }
}

/// The lines of one transaction.
#[derive(Default)]
struct Piece {
    codes: Vec<UploadedCode>,
    malformed: Vec<(i64, LineError)>,
}

impl Piece {
    /// `None` at the end of the file.
    fn read(lines: &mut Lines<'_>) -> std::io::Result<Option<Self>> {
        let mut piece = Self::default();
        let end = lines.place().bytes + PIECE_BYTES;
        while piece.codes.len() + piece.malformed.len() < PIECE_LINES && lines.place().bytes < end {
            let Some(Line { number, content }) = lines.next()? else { break };
            match content {
                Ok((code, customer_id)) => piece.codes.push(UploadedCode { line: number, code, customer_id }),
                Err(reason) => piece.malformed.push((number, reason)),
            }
        }
        let is_empty = piece.codes.is_empty() && piece.malformed.is_empty();
        Ok((!is_empty).then_some(piece))
    }

    async fn write(
        self,
        upload: &mut CodeUpload,
        place: Place,
        tell: &mut (dyn FnMut(Event) + Send),
    ) -> Result<(), ImportError> {
        let malformed = i64::try_from(self.malformed.len()).unwrap_or(i64::MAX);
        let bytes = i64::try_from(place.bytes).unwrap_or(i64::MAX);
        let refused = upload.write(self.codes, malformed, bytes, place.lines).await?;
        reject(self.malformed, refused, tell);
        Ok(())
    }
}

/// Tells the lines of a piece that are not taken, in their order.
fn reject(malformed: Vec<(i64, LineError)>, refused: Refused, tell: &mut (dyn FnMut(Event) + Send)) {
    let mut rejected = malformed;
    rejected.extend(refused.known.into_iter().map(|line| (line, LineError::Duplicate)));
    rejected.extend(refused.drawable.into_iter().map(|line| (line, LineError::Drawable)));
    rejected.sort_unstable_by_key(|(line, _)| *line);
    for (line, reason) in rejected {
        tell(Event::Rejected { line, reason });
    }
}
