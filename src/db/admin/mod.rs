pub mod audit;
pub mod commands;
pub mod provisioning;
