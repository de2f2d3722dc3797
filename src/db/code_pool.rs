//! Uploads codes with `COPY`, one chunk of the file in each transaction, together with the progress of the file: an upload that broke
//! off resumes there. A dry run copies the codes into a temporary table only.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

use super::error::DbError;
use super::session::{KEY_LOOKUP, READ_COMMITTED, SessionOptions};
use super::settings_rows::series_from;
use crate::model::{ClientHandling, CodeShape, OrgId, SeriesId, canonical};

/// A code to be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadedCode {
    /// Its line in the file.
    pub line: i64,
    /// The code, as it will be shown.
    pub code: String,
    /// The only customer who may receive it.
    pub customer_id: Option<String>,
}

/// The lines of a chunk whose codes are rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refused {
    /// The code exists: in a pool, as a coupon or as a generic code of the organisation, or further up in the file.
    pub known: Vec<i64>,
    /// A series of the organisation could generate the code.
    pub drawable: Vec<i64>,
}

impl Refused {
    fn count(&self) -> i64 {
        count(self.known.len()) + count(self.drawable.len())
    }
}

/// The progress of an upload. Counts are lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of table code_import")]
pub struct ImportState {
    pub bytes_done: i64,
    pub lines_done: i64,
    pub accepted: i64,
    pub duplicates: i64,
    pub malformed: i64,
    pub is_finished: bool,
}

/// The codes of a pool, and how fast they are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolStatus {
    /// The organisation.
    pub org_id: OrgId,
    /// The series.
    pub series_id: SeriesId,
    /// Its description.
    pub description: String,
    /// Coupons issued.
    pub issued: i64,
    /// Remaining codes.
    pub remaining: i64,
    /// The remaining codes that are for one customer each.
    pub remaining_for_one: i64,
    /// Coupons issued in the period of the forecast.
    pub issued_lately: i64,
    /// When the first of them was issued.
    pub first_lately: Option<Timestamp>,
    /// Whether any coupon was issued before that period.
    pub is_older: bool,
}

/// The table that a file is copied into, with codes in their canonical form. The caller appends the `on commit` clause.
macro_rules! uploaded {
    () => {
        r#"create temporary table uploaded (
               line bigint not null, code text not null collate "C", uploaded_code text, customer_id text)"#
    };
}

fn upload_session(connect: &PgConnectOptions) -> SessionOptions {
    SessionOptions::new(connect.clone()).with(KEY_LOOKUP).with([READ_COMMITTED])
}

/// The upload of one file into one series' pool.
pub struct CodeUpload {
    connection: PgConnection,
    org_id: OrgId,
    series_id: SeriesId,
    file_sha256: Vec<u8>,
    state: ImportState,
}

impl CodeUpload {
    /// Starts an upload, or resumes an earlier one of the same file. `None`: another process uploads into this series.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn begin(
        connect: &PgConnectOptions,
        org_id: OrgId,
        series_id: SeriesId,
        file_sha256: Vec<u8>,
    ) -> Result<Option<Self>, DbError> {
        let mut connection = upload_session(connect).open().await?;
        // A lock of the session: two uploads at once would assign the same positions. (No customer's lock has this seed: theirs is the
        // organisation's id, which is never negative.)
        let is_mine: bool =
            sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended(format('%s %s', $1, $2), -1))")
                .bind(org_id.0)
                .bind(series_id.0)
                .fetch_one(&mut connection)
                .await?;
        if !is_mine {
            return Ok(None);
        }
        sqlx::query(concat!(uploaded!(), " on commit delete rows")).execute(&mut connection).await?;
        let row = sqlx::query(
            "insert into code_import as i (org_id, series_id, file_sha256) values ($1, $2, $3)
             on conflict (org_id, series_id, file_sha256) do update set file_sha256 = excluded.file_sha256
             returning i.*",
        )
        .bind(org_id.0)
        .bind(series_id.0)
        .bind(&file_sha256)
        .fetch_one(&mut connection)
        .await?;
        let state = state_from(&row)?;
        Ok(Some(Self { connection, org_id, series_id, file_sha256, state }))
    }

    /// The progress.
    #[must_use]
    pub const fn state(&self) -> ImportState {
        self.state
    }

    /// Writes a chunk of the file with the new progress, and returns the rejected lines.
    ///
    /// # Errors
    /// When the database cannot be asked. Then nothing of the chunk is stored.
    pub async fn write(
        &mut self,
        codes: Vec<UploadedCode>,
        malformed: i64,
        bytes_done: i64,
        lines_done: i64,
    ) -> Result<Refused, DbError> {
        let mut transaction = self.connection.begin().await?;
        // Before any read: see `new_codes`.
        sqlx::query("select lock_codes_1($1)").bind(self.org_id.0).execute(&mut *transaction).await?;
        let read = count(codes.len());
        let shapes = shapes(&mut transaction, self.org_id).await?;
        let (codes, drawable) = split(codes, &shapes);
        copy_in(&mut transaction, &codes).await?;
        // Otherwise the planner would assume a few rows.
        sqlx::query("analyze uploaded").execute(&mut *transaction).await?;
        let known = sqlx::query_scalar(INSERT_NEW)
            .bind(self.org_id.0)
            .bind(self.series_id.0)
            .fetch_all(&mut *transaction)
            .await?;
        let refused = Refused { known, drawable };

        let state = ImportState {
            bytes_done,
            lines_done,
            accepted: self.state.accepted + read - refused.count(),
            duplicates: self.state.duplicates + refused.count(),
            malformed: self.state.malformed + malformed,
            is_finished: false,
        };
        sqlx::query(STORE_PROGRESS)
            .bind(self.org_id.0)
            .bind(self.series_id.0)
            .bind(&self.file_sha256)
            .bind(state.bytes_done)
            .bind(state.lines_done)
            .bind(state.accepted)
            .bind(state.duplicates)
            .bind(state.malformed)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        self.state = state;
        Ok(refused)
    }

    /// Marks the file as finished, and updates the planner's statistics.
    ///
    /// # Errors
    /// When the database cannot be asked. The upload can then be resumed.
    pub async fn finish(mut self) -> Result<ImportState, DbError> {
        sqlx::query(
            "update code_import set finished_at = now() where org_id = $1 and series_id = $2 and file_sha256 = $3",
        )
        .bind(self.org_id.0)
        .bind(self.series_id.0)
        .bind(&self.file_sha256)
        .execute(&mut self.connection)
        .await?;
        sqlx::query("analyze pool_code").execute(&mut self.connection).await?;
        let state = ImportState { is_finished: true, ..self.state };
        self.end().await?;
        Ok(state)
    }

    /// Allows other uploads into the series.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn end(mut self) -> Result<(), DbError> {
        // The end of the session also releases the lock, but only after the connection is closed: the next upload might be refused.
        sqlx::query("select pg_advisory_unlock_all()").execute(&mut self.connection).await?;
        self.connection.close().await?;
        Ok(())
    }
}

const STORE_PROGRESS: &str = "
    update code_import
       set bytes_done = $4, lines_done = $5, accepted = $6, duplicates = $7, malformed = $8
     where org_id = $1 and series_id = $2 and file_sha256 = $3";

/// A dry run of an upload into one series' pool. It stores nothing: its table is temporary.
pub struct DryRunUpload {
    connection: PgConnection,
    org_id: OrgId,
    shapes: Vec<CodeShape>,
    state: ImportState,
}

impl DryRunUpload {
    /// Starts where an earlier upload of the same file stopped.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn begin(
        connect: &PgConnectOptions,
        org_id: OrgId,
        series_id: SeriesId,
        file_sha256: &[u8],
    ) -> Result<Self, DbError> {
        let mut connection = upload_session(connect).open().await?;
        let row =
            sqlx::query("select i.* from code_import i where org_id = $1 and series_id = $2 and file_sha256 = $3")
                .bind(org_id.0)
                .bind(series_id.0)
                .bind(file_sha256)
                .fetch_optional(&mut connection)
                .await?;
        let state = row.as_ref().map_or(Ok(ImportState::default()), state_from)?;
        sqlx::query(concat!(uploaded!(), " on commit preserve rows")).execute(&mut connection).await?;
        let shapes = shapes(&mut connection, org_id).await?;
        Ok(Self { connection, org_id, shapes, state })
    }

    /// The progress.
    #[must_use]
    pub const fn state(&self) -> ImportState {
        self.state
    }

    /// Adds a chunk of the file, and returns the lines whose codes a series could generate.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn add(&mut self, codes: Vec<UploadedCode>, malformed: usize) -> Result<Refused, DbError> {
        let (codes, drawable) = split(codes, &self.shapes);
        copy_in(&mut self.connection, &codes).await?;
        self.state.accepted += count(codes.len());
        self.state.duplicates += count(drawable.len());
        self.state.malformed += count(malformed);
        Ok(Refused { drawable, ..Refused::default() })
    }

    /// Counts the codes that would be new, and reports the line of each code that exists.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn finish(mut self, report_known: &mut (dyn FnMut(i64) + Send)) -> Result<ImportState, DbError> {
        sqlx::query("analyze uploaded").execute(&mut self.connection).await?;
        let mut transaction = self.connection.begin().await?;
        sqlx::query(DECLARE_KNOWN).bind(self.org_id.0).execute(&mut *transaction).await?;
        loop {
            let lines: Vec<i64> = sqlx::query_scalar("fetch 10000 from known").fetch_all(&mut *transaction).await?;
            if lines.is_empty() {
                break;
            }
            self.state.accepted -= count(lines.len());
            self.state.duplicates += count(lines.len());
            lines.into_iter().for_each(&mut *report_known);
        }
        transaction.rollback().await?;
        self.connection.close().await?;
        Ok(self.state)
    }
}

async fn copy_in(connection: &mut PgConnection, codes: &[UploadedCode]) -> Result<(), DbError> {
    let mut copy = connection
        .copy_in_raw("copy uploaded (line, code, uploaded_code, customer_id) from stdin (format csv)")
        .await?;
    copy.send(as_csv(codes)?).await?;
    copy.finish().await?;
    Ok(())
}

fn count(lines: usize) -> i64 {
    i64::try_from(lines).unwrap_or(i64::MAX)
}

/// The shapes by which the organisation's series generate codes.
async fn shapes(connection: &mut PgConnection, org_id: OrgId) -> Result<Vec<CodeShape>, DbError> {
    let rows = sqlx::query("select * from series where org_id = $1 and client_handling_type = 'DISC_CODE'")
        .bind(org_id.0)
        .fetch_all(connection)
        .await?;
    let mut shapes = Vec::new();
    for row in &rows {
        if let ClientHandling::Generated(shape) = series_from(row)?.client_handling
            && !shapes.contains(&shape)
        {
            shapes.push(shape);
        }
    }
    Ok(shapes)
}

/// Separates the lines whose codes one of these shapes could generate.
fn split(codes: Vec<UploadedCode>, shapes: &[CodeShape]) -> (Vec<UploadedCode>, Vec<i64>) {
    let mut drawable = Vec::new();
    let mut rest = codes;
    rest.retain(|uploaded| {
        let code = canonical(&uploaded.code);
        let is_drawable = shapes.iter().any(|shape| shape.could_generate(&code));
        if is_drawable {
            drawable.push(uploaded.line);
        }
        !is_drawable
    });
    (rest, drawable)
}

/// Selects the codes that may go into the pool, each with its first line, as `new_code`. All others exist.
///
/// The upload first takes the lock on the organisation's codes (`lock_codes_1`), and the statement sees what was committed by then.
/// Under the lock nothing is added to a pool, and no series gets another generic code or another shape; codes that a series can generate
/// are not in `uploaded`. The only possible change is that a code moves from a pool to a coupon. This is one transaction, so the
/// statement sees the code in one of the two.
///
/// Scalar queries look up each code: a join may be planned as a scan of all coupons. Generic codes are stored in their canonical form.
macro_rules! new_codes {
    () => {
        "new_code as (
            select f.*
              from (select distinct on (u.code) u.* from uploaded u order by u.code, u.line) f
             where (select c.code from coupon c where c.org_id = $1 and c.code = f.code) is null
               and (select p.code from pool_code p where p.org_id = $1 and p.code = f.code) is null
               and f.code not in (
                   select v.generic_code from series_version v where v.org_id = $1 and v.generic_code is not null))"
    };
}

/// Appends the new codes to the pool, and returns the lines of the others. Positions are greater than the counter and than
/// those in the pool. After the pool ran empty, those behind the counter recur.
const INSERT_NEW: &str = concat!(
    "with ",
    new_codes!(),
    ",
    behind as (
        select greatest(
            (select p.position from pool_code p
              where p.org_id = $1 and p.series_id = $2 and p.position is not null order by p.position desc limit 1),
            (select g.position from pool_counter g
              where g.org_id = $1 and g.series_id = $2 order by g.position desc limit 1),
            0) as position),
    kept as (
        insert into pool_code (org_id, series_id, position, code, uploaded_code, customer_id)
        select $1, $2, case when n.customer_id is null then b.position + row_number() over (order by n.line) end, n.code,
               n.uploaded_code, n.customer_id
          from new_code n cross join behind b)
    select u.line from uploaded u except select n.line from new_code n"
);

/// The lines that [`INSERT_NEW`] would return.
const DECLARE_KNOWN: &str = concat!(
    "declare known no scroll cursor for with ",
    new_codes!(),
    " select u.line from uploaded u except select n.line from new_code n order by 1"
);

fn as_csv(codes: &[UploadedCode]) -> Result<Vec<u8>, DbError> {
    let mut writer = csv::Writer::from_writer(Vec::with_capacity(codes.len() * 32));
    for UploadedCode { line, code, customer_id } in codes {
        let compared = canonical(code);
        let uploaded = (compared != *code).then_some(code);
        // COPY reads an empty column as null: no code and no customer id is empty.
        let row = (line, compared, uploaded, customer_id);
        writer.serialize(row).map_err(|error| unwritable(&error))?;
    }
    writer.into_inner().map_err(|error| unwritable(error.error()))
}

fn unwritable(error: &dyn std::error::Error) -> DbError {
    DbError::Failed(sqlx::Error::Encode(error.to_string().into()))
}

fn state_from(row: &PgRow) -> Result<ImportState, DbError> {
    Ok(ImportState {
        bytes_done: row.try_get("bytes_done")?,
        lines_done: row.try_get("lines_done")?,
        accepted: row.try_get("accepted")?,
        duplicates: row.try_get("duplicates")?,
        malformed: row.try_get("malformed")?,
        is_finished: row.try_get::<Option<jiff_sqlx::Timestamp>, _>("finished_at")?.is_some(),
    })
}

/// Whether a series exists, and whether its codes are uploaded.
///
/// # Errors
/// When the database cannot be asked.
pub async fn is_pool(connect: &PgConnectOptions, org_id: OrgId, series_id: SeriesId) -> Result<Option<bool>, DbError> {
    let mut connection = connect.connect().await?;
    let found = sqlx::query_scalar(
        "select client_handling_type = 'DISC_CODE_PIN' from series where org_id = $1 and series_id = $2",
    )
    .bind(org_id.0)
    .bind(series_id.0)
    .fetch_optional(&mut connection)
    .await?;
    connection.close().await?;
    Ok(found)
}

/// The state of all pools, or only of those of this organisation or series. Reads all coupons of these series.
///
/// # Errors
/// When the database cannot be asked.
pub async fn status(
    connect: &PgConnectOptions,
    org_id: Option<OrgId>,
    series_id: Option<SeriesId>,
    since: Timestamp,
) -> Result<Vec<PoolStatus>, DbError> {
    let mut connection = connect.connect().await?;
    let rows = sqlx::query(STATUS)
        .bind(org_id.map(|id| id.0))
        .bind(series_id.map(|id| id.0))
        .bind(since.to_sqlx())
        .fetch_all(&mut connection)
        .await?;
    connection.close().await?;
    rows.iter()
        .map(|row| {
            Ok(PoolStatus {
                org_id: OrgId(row.try_get("org_id")?),
                series_id: SeriesId(row.try_get("series_id")?),
                description: row.try_get("description")?,
                issued: row.try_get("issued")?,
                remaining: row.try_get("remaining")?,
                remaining_for_one: row.try_get("remaining_for_one")?,
                issued_lately: row.try_get("issued_lately")?,
                first_lately: row
                    .try_get::<Option<jiff_sqlx::Timestamp>, _>("first_lately")?
                    .map(jiff_sqlx::Timestamp::to_jiff),
                is_older: row.try_get("is_older")?,
            })
        })
        .collect()
}

const STATUS: &str = "
    with pool as (
        select s.org_id, s.series_id, s.description from series s
         where s.client_handling_type = 'DISC_CODE_PIN'
           and ($1::bigint is null or s.org_id = $1) and ($2::bigint is null or s.series_id = $2)),
    given as (
        select c.org_id, c.series_id, count(*) as issued,
               count(*) filter (where c.issued_at >= $3) as issued_lately,
               min(c.issued_at) filter (where c.issued_at >= $3) as first_lately,
               bool_or(c.issued_at < $3) as is_older
          from coupon c join pool p on p.org_id = c.org_id and p.series_id = c.series_id
         group by c.org_id, c.series_id),
    free as (
        select f.org_id, f.series_id, count(*) as remaining, count(f.customer_id) as remaining_for_one
          from pool_code f join pool p on p.org_id = f.org_id and p.series_id = f.series_id
         group by f.org_id, f.series_id)
    select p.org_id, p.series_id, p.description, coalesce(g.issued, 0) as issued, coalesce(f.remaining, 0) as remaining,
           coalesce(f.remaining_for_one, 0) as remaining_for_one, coalesce(g.issued_lately, 0) as issued_lately, g.first_lately,
           coalesce(g.is_older, false) as is_older
      from pool p
      left join given g using (org_id, series_id)
      left join free f using (org_id, series_id)
     order by p.org_id, p.series_id";
