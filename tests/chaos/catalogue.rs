//! The series of a run, one of each kind, their limits and their codes. The file of `apply` changes during a run.

use std::fmt::Write as _;

use crate::history::Series;

/// Has no limit. Probes ask for it.
pub const UNLIMITED: i64 = 1;
/// Has a cap that is never reached.
pub const CAPPED: i64 = 2;
/// Has a cap that is reached, and raised again and again.
pub const HOT: i64 = 3;
pub const ONE_EACH: i64 = 5;
pub const THREE_EACH: i64 = 6;
/// Resends the coupon that the customer holds.
pub const RESENT: i64 = 7;
pub const ONE_A_DAY: i64 = 8;
/// Has more uploaded codes than a run needs.
pub const PLENTY: i64 = 9;
/// Runs out of uploaded codes.
pub const SCARCE: i64 = 10;
/// Has one code for all coupons.
pub const GENERIC: i64 = 11;
/// Has codes as short as the settings allow. A tenth of them is taken before the run ([`take_codes`]), so that new codes collide.
pub const NARROW: i64 = 15;
pub const ALL: [i64; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// The customer whose coupons take those codes.
pub const COLLECTOR: &str = "collector";

pub const TIME_ZONE: &str = "UTC";

/// The series with a cap, and their caps at this version of the settings.
pub fn caps(version: u32) -> [(i64, i64); 5] {
    // The cap of `NARROW` keeps most codes free. If ten draws in a row collided, the answer would be 786.
    [(CAPPED, 1_000_000_000), (HOT, 200 + 40 * i64::from(version)), (4, 60), (14, 1_500), (NARROW, 5_000)]
}

/// The rules of every series at this version of the settings.
pub fn rules(version: u32) -> Vec<Series> {
    let caps = caps(version);
    let cap = |id| caps.iter().find(|(capped, _)| *capped == id).map_or(-1, |(_, cap)| *cap);
    ALL.into_iter().map(|id| rule(id, cap(id))).collect()
}

fn rule(id: i64, max_create: i64) -> Series {
    Series {
        id,
        client_handling_type: match id {
            PLENTY | SCARCE => "DISC_CODE_PIN",
            GENERIC => "GENERIC",
            _ => "DISC_CODE",
        }
        .to_owned(),
        generic_code: (id == GENERIC).then(|| "FORALL".to_owned()),
        valid_till_date: "2099-12-31".parse().unwrap(),
        max_create,
        is_multiple_vouchers_per_user_allowed: id != ONE_EACH,
        max_vouchers_per_user: if id == THREE_EACH { 3 } else { -1 },
        do_not_resend_existing_voucher: id != RESENT,
        min_days_between_vouchers: if id == ONE_A_DAY { 1 } else { -1 },
        mutual_exclusive_series_ids: match id {
            12 => vec![13],
            13 => vec![14],
            _ => Vec::new(),
        },
    }
}

/// The file of `apply`. Each version has its own descriptions and caps.
pub fn file(version: u32) -> String {
    let mut file = format!(
        "[[orgs]]\nid = 1\nname = \"Test Retail\"\ntime_zone = \"{TIME_ZONE}\"\ncustomer_policy = \"open\"\n\
         natural_key = true\ndefault_access = \"write\"\n[[orgs.stores]]\nid = 10\nname = \"Downtown\"\n[[orgs.tills]]\n\
         id = \"store.server\"\nstore_id = 10\npassword = \"server123\"\n"
    );
    for series in rules(version) {
        file += &section(&series, version);
    }
    file
}

fn section(series: &Series, version: u32) -> String {
    let Series { id, client_handling_type, valid_till_date, max_create, max_vouchers_per_user, .. } = series;
    let mut section = format!(
        "[[orgs.series]]\nid = {id}\ndescription = \"Series {id}, version {version}\"\ndiscount_type = \"ABS\"\n\
         discount_value = 500\nvalid_till_date = {valid_till_date}\nclient_handling_type = \"{client_handling_type}\"\n\
         max_create = {max_create}\nis_multiple_vouchers_per_user_allowed = {}\n\
         max_vouchers_per_user = {max_vouchers_per_user}\ndo_not_resend_existing_voucher = {}\n\
         min_days_between_vouchers = {}\nmutual_exclusive_series_ids = {:?}\n",
        series.is_multiple_vouchers_per_user_allowed,
        series.do_not_resend_existing_voucher,
        series.min_days_between_vouchers,
        series.mutual_exclusive_series_ids,
    );
    if let Some(code) = &series.generic_code {
        writeln!(section, "generic_code = \"{code}\"").unwrap();
    }
    if *id == NARROW {
        section += "alpha_numeric = false\nrandom_code_length = 5\n";
    }
    section
}

/// The statement that takes every tenth code of [`NARROW`]. Its coupons are of the series [`UNLIMITED`] and belong to [`COLLECTOR`]:
/// a code is unique within the whole organisation, whatever the series.
pub fn take_codes() -> String {
    format!(
        "do $$ declare
             codes constant integer := 10000;
             first_id constant bigint := lease_coupon_ids_1(codes);
             origin constant integer := origin_1(1, 10, 'INSTORE', 'store.server', null);
         begin
             insert into keyed_request (org_id, first_coupon_id, fingerprint, received_at, incarnation, attempt, key_hash, answers)
             select 1, first_id + n, 0, now(), 0, 0, key_hash_1('{COLLECTOR} ' || n), {UNLIMITED} from generate_series(0, codes - 1) n;
             insert into coupon (org_id, coupon_id, series_id, issued_at, series_version, origin_id, expires_on, customer_id, code,
                                 request_id)
             select 1, first_id + n, {UNLIMITED}, now(), 1, origin, '2099-12-31', '{COLLECTOR}', lpad((10 * n)::text, 5, '0'),
                    '{COLLECTOR}'
               from generate_series(0, codes - 1) n;
         end $$"
    )
}

/// A file of codes to upload, one on each line. Each version has its own codes.
pub fn codes(prefix: &str, version: u32, count: u32) -> String {
    (0..count).fold(String::new(), |mut file, number| {
        writeln!(file, "{prefix}-{version}-{number}").unwrap();
        file
    })
}
