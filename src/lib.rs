//! Issues coupons over HTTP: one coupon per series for one customer, each in its own Postgres transaction.
//!
//! A request walks `http` → `issuance` → `db` and back; docs/architecture.md is the map.

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
