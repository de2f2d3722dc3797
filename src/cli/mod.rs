//! Each command reads its arguments and settings, calls the room that does the work, and prints the result.

mod args;
mod callers;
mod codes;
mod config;
mod demo;
mod dispatch;
mod healthcheck;
mod keys;
mod output;
mod provision;
mod serve;
mod verify;

pub use dispatch::run;
