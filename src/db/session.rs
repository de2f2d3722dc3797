//! Settings of database sessions that several kinds of connections share.

/// For sessions that look rows up by key. Where statistics are stale, the planner would otherwise scan tables that have grown. JIT is
/// off because the price put on sequential scans would trigger it, at 50 ms a statement.
pub(super) const KEY_LOOKUP_OPTIONS: [(&str, &str); 2] = [("enable_seqscan", "off"), ("jit", "off")];

/// For sessions that repeat few statements with arrays of values. Without it, Postgres plans each execution anew: it overestimates what a
/// plan for the given values saves. Planning takes 400 µs for a look-up of histories, and 1 µs of each coupon of a batch.
pub(super) const PLANNED_ONCE: (&str, &str) = ("plan_cache_mode", "force_generic_plan");

/// Makes each statement see what was committed before it, whatever isolation level the database has as its default. A statement that
/// follows a wait for a lock relies on this.
pub(super) const READ_COMMITTED: &str = "set session characteristics as transaction isolation level read committed";
