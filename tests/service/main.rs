//! Tests of the whole service on a real Postgres. Each asserts what callers see and what the database stores.
//!
//! One binary, so that all tests share one Postgres server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod applying;
mod attribution;
mod authentication;
mod codes;
mod commands;
mod connections;
mod console;
#[path = "../model/mod.rs"]
mod contract_model;
mod cut_points;
mod external_issuers;
mod failures;
mod hostile;
mod idempotency;
mod input;
mod issuing;
mod lifecycle;
mod model;
mod network;
mod oauth;
mod openapi;
mod overload;
mod pools;
mod races;
mod rate_limits;
mod reads;
mod replay;
mod schema;
mod settings;
mod support;
mod takeover;
mod telemetry;
mod tenants;
mod verify;
