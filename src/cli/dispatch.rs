use std::process::ExitCode;

use clap::Parser;

use super::args::{Cli, CodesCommand, Command, ConfigCommand, KeysCommand};
use super::output::{answer, complain, report};
use super::{callers, codes, config, demo, healthcheck, keys, provision, serve, verify};
use crate::config::Settings;
use crate::db::migrations;
use crate::{http, telemetry};

/// Runs the command that the arguments of this process name.
pub async fn run() -> ExitCode {
    let result = dispatch(Cli::parse().command).await;
    telemetry::flush_logs();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("coupon-issuer: {}", message(&error)));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without causes that the message already quotes.
fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    // `DbError` quotes the database's message and code.
    let causes = error.chain().skip(1).filter(|cause| !cause.is::<sqlx::Error>());
    for cause in causes.map(ToString::to_string) {
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    message
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => demo::demo(args).await,
        Command::Serve(args) => serve::serve(args).await,
        Command::Migrate(common) => {
            migrations::migrate(&common.connect_options()?).await?;
            report("the schema is up to date");
            Ok(())
        }
        Command::Apply(args) => provision::apply(args).await,
        Command::Codes(CodesCommand::Import(args)) => codes::import(args).await,
        Command::Codes(CodesCommand::Status(args)) => codes::status(args).await,
        Command::Config(ConfigCommand::Show(common)) => config::show(&common),
        Command::Verify(args) => verify::verify(args).await,
        Command::Healthcheck(args) => healthcheck::healthcheck(&args.url).await,
        Command::Openapi(args) => answer(http::document(&Settings::load(args.config.as_deref())?.http)?),
        Command::Keys(KeysCommand::Rotate(common)) => keys::rotate(common).await,
        Command::Keys(KeysCommand::List(common)) => keys::list(common).await,
        Command::Till(command) => callers::till(command).await.map(report),
        Command::Client(command) => callers::client(command).await.map(report),
    }
}
