//! The coupon issuer: one coupon per series for one customer, each in its own Postgres transaction.
//!
//! A request walks `http` → `issuance` → `db` and back; `README.md`, "The walk of a request", is the map.
//! This file only names the rooms. Who may import whom is checked by `tests/layering.rs`.

pub mod activity;
pub mod app;
pub mod auth;
pub mod codes;
pub mod config;
pub mod db;
pub mod http;
pub mod issuance;
pub mod model;
pub mod private_postgres;
pub mod provisioning;
pub mod telemetry;
pub mod verify;
pub mod watch;
