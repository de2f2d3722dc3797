//! Reads the commits of a run from Postgres' write-ahead log, by logical decoding with the plug-in `pgoutput`.
//! The log gives the order of the commits, and has no commit that a crash lost.

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

/// How many changes are read at a time, so that neither side holds a whole run in memory.
const DECODE_BATCH_SIZE: i32 = 50_000;

/// Executed before the first coupon that the history must contain.
pub const SET_UP: [&str; 2] = [
    "create publication history for table coupon, series, pool_code with (publish = 'insert, update')",
    "select pg_create_logical_replication_slot('history', 'pgoutput')",
];

/// How often a mark is recorded.
const MARK_INTERVAL: Duration = Duration::from_millis(20);

/// Records marks until it is aborted.
pub async fn mark_continuously(world: Arc<World>) {
    loop {
        if let Ok(mut admin) = world.cluster.try_admin().await {
            while let Ok(mark) = mark(&mut admin, &world.tills.recorder).await {
                world.tills.recorder.write(&Line::Mark(mark));
                sleep(MARK_INTERVAL).await;
            }
        }
        sleep(MARK_INTERVAL).await;
    }
}

pub async fn mark_once(world: &World) {
    let mark = mark(&mut world.cluster.admin().await, &world.tills.recorder).await.unwrap();
    world.tills.recorder.write(&Line::Mark(mark));
}

/// Adds all commits since [`SET_UP`] to the history, and returns the whole.
pub async fn complete(world: &World) -> History {
    let recorder = &world.tills.recorder;
    recorder.flush();
    let mut history = History::read(&recorder.path).unwrap();
    let mut admin = world.cluster.admin_with_statistics().await;
    let called: HashSet<&str> = history.issues.iter().map(|call| call.key.as_str()).collect();
    let keys = verdict::keys(&mut admin, called.into_iter()).await;
    // After a crash the slot may start at an older position. Commits that the file has are skipped.
    let last_known = history.commits.last().map_or(0, Commit::lsn);
    let mut commits = read(&mut admin, last_known).await;
    // Queried after the commits: a call may have committed its coupon in the meantime, and every commit needs its coupon.
    let issued = issued(&mut admin, &keys).await;
    for commit in &mut commits {
        name_entity(commit, &issued);
        recorder.write(&commit.clone().line());
    }
    recorder.flush();
    history.commits.extend(commits);
    history
}

/// The commits after this position.
async fn read(admin: &mut PgConnection, last_known: Lsn) -> Vec<Commit> {
    let mut decoder = Decoder { latest: last_known, ..Decoder::default() };
    loop {
        // Peeked first, and consumed only when they are here: changes that were lost on the way would be lost for good.
        let changes: Vec<Vec<u8>> = sqlx::query_scalar(
            "select data from pg_logical_slot_peek_binary_changes(
                 'history', null, $1, 'proto_version', '1', 'publication_names', 'history')",
        )
        .bind(DECODE_BATCH_SIZE)
        .fetch_all(&mut *admin)
        .await
        .unwrap();
        if changes.is_empty() {
            return decoder.commits;
        }
        for change in changes {
            decoder.decode(Bytes::from(change));
        }
        let consume = format!("select pg_replication_slot_advance('history', '0/0'::pg_lsn + {})", decoder.latest);
        sqlx::raw_sql(AssertSqlSafe(consume)).execute(&mut *admin).await.unwrap();
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

/// The entity of a coupon, and the code that answers show.
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
        // In this test each customer has one natural key, whose request has each series once.
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

/// Adds to a coupon its entity and the code that answers show. A deleted coupon keeps the code of its commit.
fn name_entity(commit: &mut Commit, issued: &HashMap<i64, Issued>) {
    if let Commit::Coupon(coupon) = commit
        && let Some(Issued { key, entity, code }) = issued.get(&coupon.id)
    {
        coupon.key.clone_from(key);
        coupon.entity = *entity;
        coupon.code.clone_from(code);
    }
}

/// Decodes the messages of `pgoutput`, version 1 of its protocol.
#[derive(Default)]
struct Decoder {
    tables: HashMap<i32, Table>,
    /// The changes of the current transaction. The position of its commit comes last in the log.
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
    fn decode(&mut self, mut message: Bytes) {
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
            // Types and origins.
            _ => {}
        }
    }

    fn change(&mut self, mut message: Bytes) {
        let table = &self.tables[&message.get_i32()];
        if message.get_u8() != b'N' {
            // The row before the update.
            row(&mut message, &table.columns);
            message.get_u8();
        }
        let row = row(&mut message, &table.columns);
        match table.name.as_str() {
            "coupon" => self.open.push(Commit::Coupon(coupon(&row))),
            "series" => self.set_cap(&row),
            "pool_code" => self.upload(&row),
            other => panic!("{other} is not published"),
        }
    }

    /// `apply` updates a series in two statements. Only the result of the second is committed.
    fn set_cap(&mut self, row: &ChangedRow) {
        let max_create = row.get("max_create").map_or(-1, |cap| cap.parse().unwrap());
        let settings = Settings { commit: 0, series: number(row, "series_id"), max_create };
        self.open.retain(|change| !matches!(change, Commit::Settings(before) if before.series == settings.series));
        self.open.push(Commit::Settings(settings));
    }

    fn upload(&mut self, row: &ChangedRow) {
        let (series, code) = (number(row, "series_id"), row.get("uploaded_code").unwrap_or(&row["code"]).clone());
        match self.open.last_mut() {
            Some(Commit::Codes(codes)) if codes.series == series => codes.codes.push(code),
            _ => self.open.push(Commit::Codes(Codes { commit: 0, series, codes: vec![code] })),
        }
    }
}

/// The columns of a row that are not null, as text.
type ChangedRow = HashMap<String, String>;

fn number(row: &ChangedRow, column: &str) -> i64 {
    row[column].parse().unwrap()
}

/// The key and the entity of a coupon are not in its row.
fn coupon(row: &ChangedRow) -> Coupon {
    Coupon {
        commit: 0,
        id: number(row, "coupon_id"),
        key: None,
        entity: 0,
        customer: row["customer_id"].clone(),
        series: number(row, "series_id"),
        code: row.get("uploaded_code").or(row.get("code")).cloned().unwrap_or_default(),
        issued_at: instant(&row["issued_at"]),
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

/// Text that a zero byte terminates.
fn text(message: &mut Bytes) -> String {
    let length = message.iter().position(|byte| *byte == 0).unwrap();
    let text = message.split_to(length);
    message.advance(1);
    String::from_utf8(text.to_vec()).unwrap()
}

fn row(message: &mut Bytes, columns: &[String]) -> ChangedRow {
    let count = usize::try_from(message.get_i16()).unwrap();
    assert_eq!(count, columns.len());
    let mut row = HashMap::new();
    for column in columns {
        // Other kinds are nulls and long values that did not change. No column that is needed here is of the latter.
        if message.get_u8() == b't' {
            let length = usize::try_from(message.get_i32()).unwrap();
            let value = message.split_to(length);
            row.insert(column.clone(), String::from_utf8(value.to_vec()).unwrap());
        }
    }
    row
}

/// Parses an instant as Postgres writes it: its offset has hours, or hours and minutes.
fn instant(text: &str) -> jiff::Timestamp {
    let (local, offset) = text.split_at(text.rfind(['+', '-']).unwrap());
    let offset = if offset.len() == 3 { format!("{offset}:00") } else { offset.to_owned() };
    format!("{}{offset}", local.replace(' ', "T")).parse().unwrap()
}
