//! Issues coupons over HTTP: one coupon per series for one customer, each in its own Postgres transaction.
//!
//! A request goes through `http` → `issuance` → `db` and back; see docs/architecture.md.

pub mod activity;
pub mod auth;
pub mod cli;
pub mod codes;
pub mod config;
pub mod db;
pub mod demo;
pub mod http;
pub mod issuance;
pub mod model;
pub mod provisioning;
pub mod server;
pub mod telemetry;
pub mod verify;
