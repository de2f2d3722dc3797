//! The pools of `DISC_CODE_PIN` series, from the side of those who fill them: uploading a file of codes, and how long
//! what is left will last. Giving codes out is the writer's (`store::writer`), never done here.

mod file;
mod forecast;

use std::path::Path;

use sqlx::postgres::PgConnectOptions;

use self::file::{Line, Lines, fingerprint};
pub use self::forecast::{Pools, status};
use crate::model::{OrgId, SeriesId};
use crate::store::StoreError;
pub use crate::store::pool::ImportState;
use crate::store::pool::{CodeUpload, UploadedCode, is_pool};

/// Lines in one transaction, at most.
const PIECE_LINES: usize = 50_000;
/// Bytes of codes in one transaction, about at most.
const PIECE_BYTES: u64 = 4 << 20;

/// Why a file was not uploaded to its end. What was uploaded before stays, and the same command goes on from there.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ImportError {
    #[error("{0}: {1}")]
    File(String, #[source] std::io::Error),
    #[error("--series {}: organisation {} has no such series", .1.0, .0.0)]
    NoSuchSeries(OrgId, SeriesId),
    #[error("--series {}: its codes are not uploaded (client_handling_type is not DISC_CODE_PIN)", .0.0)]
    NotAPool(SeriesId),
    #[error("another process is uploading codes into series {}", .0.0)]
    Busy(SeriesId),
    #[error(transparent)]
    Store(#[from] StoreError),
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
        reason: &'static str,
    },
    /// So many bytes of the file are done.
    Progress {
        /// Done.
        done: u64,
        /// In all.
        of: u64,
    },
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
    let unreadable = |error| ImportError::File(path.display().to_string(), error);
    match is_pool(connect, org_id, series_id).await? {
        Some(true) => {}
        Some(false) => return Err(ImportError::NotAPool(series_id)),
        None => return Err(ImportError::NoSuchSeries(org_id, series_id)),
    }
    let known_by = fingerprint(path).map_err(unreadable)?;
    let upload = CodeUpload::begin(connect, org_id, series_id, known_by.sha256).await?;
    let mut upload = upload.ok_or(ImportError::Busy(series_id))?;
    let so_far = upload.state();
    tell(Event::Begins(so_far));
    if so_far.is_finished {
        return Ok(so_far);
    }
    let start = u64::try_from(so_far.bytes_done).unwrap_or(0);
    let mut lines = Lines::open(path, start, so_far.lines_done).map_err(unreadable)?;
    while let Some(piece) = Piece::read(&mut lines).map_err(unreadable)? {
        piece.write(&mut upload, &lines, tell).await?;
        tell(Event::Progress { done: lines.bytes, of: known_by.bytes });
    }
    Ok(upload.finish().await?)
}

/// The lines of one transaction.
#[derive(Default)]
struct Piece {
    codes: Vec<UploadedCode>,
    malformed: Vec<(i64, &'static str)>,
}

impl Piece {
    /// `None` at the end of the file.
    fn read(lines: &mut Lines) -> std::io::Result<Option<Self>> {
        let mut piece = Self::default();
        let end = lines.bytes + PIECE_BYTES;
        while piece.codes.len() + piece.malformed.len() < PIECE_LINES && lines.bytes < end {
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
        lines: &Lines,
        tell: &mut (dyn FnMut(Event) + Send),
    ) -> Result<(), ImportError> {
        let malformed = i64::try_from(self.malformed.len()).unwrap_or(i64::MAX);
        let bytes = i64::try_from(lines.bytes).unwrap_or(i64::MAX);
        let duplicates = upload.write(&self.codes, malformed, bytes, lines.number).await?;
        let mut rejected = self.malformed;
        rejected.extend(duplicates.into_iter().map(|line| (line, "the code has been uploaded or issued before")));
        rejected.sort_unstable();
        for (line, reason) in rejected {
            tell(Event::Rejected { line, reason });
        }
        Ok(())
    }
}
