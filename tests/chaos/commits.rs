//! What Postgres committed, in order: read from its write-ahead log by logical decoding, with the plug-in that every server has.
//! The position of a commit in the log orders the commits, and nothing that a crash lost is there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::time::sleep;

use crate::faults::World;
use crate::history::{Codes, Commit, Coupon, History, Line, Lsn, Mark, Recorder, Settings};
use crate::natural;
use crate::verdict::{self, ENTITIES};

/// Changes that are read at a time, so that neither side holds a whole run in memory.
const AT_ONCE: i32 = 50_000;

/// Before anything is stored that the history is to have.
pub const SET_UP: [&str; 2] = [
    "create publication history for table coupon, series, pool_code with (publish = 'insert, update')",
    "select pg_create_logical_replication_slot('history', 'pgoutput')",
];

/// How often the position in the log is written down.
const MARK_EVERY: Duration = Duration::from_millis(20);

/// Writes down where the log is, again and again, until it is aborted.
pub async fn mark_always(world: Arc<World>) {
    loop {
        if let Ok(mut admin) = world.cluster.try_admin().await {
            while let Ok(mark) = mark(&mut admin, &world.shop.recorder).await {
                world.shop.recorder.write(&Line::Mark(mark));
                sleep(MARK_EVERY).await;
            }
        }
        sleep(MARK_EVERY).await;
    }
}

/// Writes down once where the log is.
pub async fn mark_once(world: &World) {
    let mark = mark(&mut world.cluster.admin().await, &world.shop.recorder).await.unwrap();
    world.shop.recorder.write(&Line::Mark(mark));
}

/// Adds all commits since [`SET_UP`] to the history, and returns the whole.
pub async fn complete(world: &World) -> History {
    let recorder = &world.shop.recorder;
    recorder.flush();
    let mut history = History::read(&recorder.path).unwrap();
    let mut admin = world.cluster.admin_with_statistics().await;
    let called: HashSet<&str> = history.issues.iter().map(|call| call.key.as_str()).collect();
    let keys = verdict::keys(&mut admin, called.into_iter()).await;
    // After a crash the slot may start at an older position: what the file has is skipped.
    let known = history.commits.last().map_or(0, Commit::lsn);
    let mut commits = read(&mut admin, known).await;
    // After the commits were read: a coupon of a call that is still at work must be found, too.
    let issued = issued(&mut admin, &keys).await;
    for commit in &mut commits {
        name_entity(commit, &issued);
        recorder.write(&commit.clone().line());
    }
    recorder.flush();
    history.commits.extend(commits);
    history
}

/// The commits after one that is known.
async fn read(admin: &mut PgConnection, known: Lsn) -> Vec<Commit> {
    let mut decoder = Decoder { latest: known, ..Decoder::default() };
    loop {
        // Looked at, and only then passed: what is read and lost on its way to here is read again.
        let changes: Vec<Vec<u8>> = sqlx::query_scalar(
            "select data from pg_logical_slot_peek_binary_changes(
                 'history', null, $1, 'proto_version', '1', 'publication_names', 'history')",
        )
        .bind(AT_ONCE)
        .fetch_all(&mut *admin)
        .await
        .unwrap();
        if changes.is_empty() {
            return decoder.commits;
        }
        for change in changes {
            decoder.take(Bytes::from(change));
        }
        let passed = format!("select pg_replication_slot_advance('history', '0/0'::pg_lsn + {})", decoder.latest);
        sqlx::raw_sql(AssertSqlSafe(passed)).execute(&mut *admin).await.unwrap();
    }
}

async fn mark(admin: &mut PgConnection, recorder: &Recorder) -> sqlx::Result<Mark> {
    let start = recorder.now();
    let row = sqlx::query(
        "select (pg_current_wal_flush_lsn() - '0/0')::bigint as flushed, (pg_current_wal_insert_lsn() - '0/0')::bigint as inserted",
    )
    .fetch_one(admin)
    .await?;
    let position = |column| u64::try_from(row.get::<i64, _>(column)).unwrap();
    Ok(Mark { start, end: recorder.now(), inserted: position("inserted"), flushed: position("flushed") })
}

/// For which entity a coupon was issued, and the code that is shown of it.
struct Issued {
    key: Option<String>,
    entity: usize,
    code: String,
}

async fn issued(admin: &mut PgConnection, keys: &HashMap<String, String>) -> HashMap<i64, Issued> {
    let query = format!(
        "{ENTITIES}
         select c.coupon_id, c.code, e.key_hash::text as key_hash, e.entity, c.series_id,
                case when n.coupon_id is not null then c.customer_id end as natural_key
           from issued_coupon c
           left join natural_issuance n on (n.org_id, n.coupon_id) = (c.org_id, c.coupon_id)
           left join entity e on (e.org_id, e.coupon_id) = (c.org_id, c.coupon_id)"
    );
    let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(admin).await.unwrap();
    let issued = |row: sqlx::postgres::PgRow| {
        let (id, code) = (row.get("coupon_id"), row.get("code"));
        // A natural key is its customer's only one, and has each series once.
        if let Some(key) = row.get("natural_key") {
            let entity = natural::SERIES.iter().position(|series| *series == row.get::<i64, _>("series_id")).unwrap();
            return (id, Issued { key: Some(key), entity, code });
        }
        let key = row.get::<Option<String>, _>("key_hash").and_then(|hash| keys.get(&hash).cloned());
        let entity = row.get::<Option<i64>, _>("entity").map_or(0, |entity| usize::try_from(entity).unwrap());
        (id, Issued { key, entity, code })
    };
    rows.into_iter().map(issued).collect()
}

/// Says of a coupon for which entity it was issued, and the code that is shown. A deleted coupon keeps the code that it was stored with.
fn name_entity(commit: &mut Commit, issued: &HashMap<i64, Issued>) {
    if let Commit::Coupon(coupon) = commit
        && let Some(Issued { key, entity, code }) = issued.get(&coupon.id)
    {
        coupon.key.clone_from(key);
        coupon.entity = *entity;
        coupon.code.clone_from(code);
    }
}

/// Reads the messages of `pgoutput` (version 1 of its protocol), one transaction after the other.
#[derive(Default)]
struct Decoder {
    tables: HashMap<i32, Table>,
    /// The changes of the transaction at hand, without the position of its commit.
    open: Vec<Commit>,
    commits: Vec<Commit>,
    latest: Lsn,
}

#[derive(Default)]
struct Table {
    name: String,
    columns: Vec<String>,
}

impl Decoder {
    fn take(&mut self, mut message: Bytes) {
        match message.get_u8() {
            b'B' => self.open.clear(),
            b'R' => {
                let id = message.get_i32();
                self.tables.insert(id, table(&mut message));
            }
            b'I' | b'U' => self.change(message),
            b'C' => {
                let (_flags, _begin, end) = (message.get_u8(), message.get_u64(), message.get_u64());
                if end > self.latest {
                    self.latest = end;
                    self.commits.extend(self.open.drain(..).map(|change| change.at(end)));
                }
            }
            // Types and origins, which say nothing of rows.
            _ => {}
        }
    }

    fn change(&mut self, mut message: Bytes) {
        let table = &self.tables[&message.get_i32()];
        if message.get_u8() != b'N' {
            // What the row was before.
            row(&mut message, &table.columns);
            message.get_u8();
        }
        let row = row(&mut message, &table.columns);
        let number = |column: &str| row[column].parse::<i64>().unwrap();
        match table.name.as_str() {
            "coupon" => self.open.push(Commit::Coupon(Coupon {
                commit: 0,
                id: number("coupon_id"),
                key: None,
                entity: 0,
                customer: row["customer_id"].clone(),
                series: number("series_id"),
                code: row.get("uploaded_code").or(row.get("code")).cloned().unwrap_or_default(),
                issued_at: instant(&row["issued_at"]),
            })),
            "series" => {
                let max_create = row.get("max_create").map_or(-1, |cap| cap.parse().unwrap());
                let settings = Settings { commit: 0, series: number("series_id"), max_create };
                // A change takes two statements: only what the second one leaves is committed.
                self.open
                    .retain(|change| !matches!(change, Commit::Settings(before) if before.series == settings.series));
                self.open.push(Commit::Settings(settings));
            }
            "pool_code" => {
                let (series, code) = (number("series_id"), row.get("uploaded_code").unwrap_or(&row["code"]).clone());
                match self.open.last_mut() {
                    Some(Commit::Codes(codes)) if codes.series == series => codes.codes.push(code),
                    _ => self.open.push(Commit::Codes(Codes { commit: 0, series, codes: vec![code] })),
                }
            }
            other => panic!("{other} is not published"),
        }
    }
}

fn table(message: &mut Bytes) -> Table {
    let (_schema, name, _identity) = (text(message), text(message), message.get_u8());
    let count = message.get_i16();
    let column = |_| {
        let (_flags, name) = (message.get_u8(), text(message));
        let (_type, _modifier) = (message.get_i32(), message.get_i32());
        name
    };
    Table { name, columns: (0..count).map(column).collect() }
}

/// Up to a zero byte.
fn text(message: &mut Bytes) -> String {
    let length = message.iter().position(|byte| *byte == 0).unwrap();
    let text = message.split_to(length);
    message.advance(1);
    String::from_utf8(text.to_vec()).unwrap()
}

/// The columns that are not null, as text.
fn row(message: &mut Bytes, columns: &[String]) -> HashMap<String, String> {
    let count = usize::try_from(message.get_i16()).unwrap();
    assert_eq!(count, columns.len());
    let mut row = HashMap::new();
    for column in columns {
        // The others are null, or long and unchanged: no column that is read here.
        if message.get_u8() == b't' {
            let length = usize::try_from(message.get_i32()).unwrap();
            let value = message.split_to(length);
            row.insert(column.clone(), String::from_utf8(value.to_vec()).unwrap());
        }
    }
    row
}

/// As Postgres writes an instant, with the offset in hours, or hours and minutes.
fn instant(text: &str) -> jiff::Timestamp {
    let (local, offset) = text.split_at(text.rfind(['+', '-']).unwrap());
    let offset = if offset.len() == 3 { format!("{offset}:00") } else { offset.to_owned() };
    format!("{}{offset}", local.replace(' ', "T")).parse().unwrap()
}
