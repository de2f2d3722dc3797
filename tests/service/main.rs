//! The service as callers, operators and Postgres see it: the real router, the real writer, a real database.
//!
//! One binary, so that all tests share one server. Each asserts on what a caller sees, and on what is stored.

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
mod outside_issuers;
mod overload;
mod pools;
mod races;
mod rate_limits;
mod replay;
mod schema;
mod settings;
mod support;
mod takeover;
mod telemetry;
mod tenants;
mod verify;
