use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use secrecy::SecretString;

use super::args::{ClientArgs, ClientCommand, SetPasswordArgs, SetSecretArgs, TillArgs, TillCommand, require_schema};
use crate::model::{SystemClock, secret_in};
use crate::provisioning::commands::{self, Holder, Invocation, Outcome};

fn invocation() -> Invocation {
    Invocation::now(&SystemClock)
}

pub(super) async fn till(command: TillCommand) -> anyhow::Result<Outcome> {
    let set_disabled = async |TillArgs { till, common }: TillArgs, disabled| {
        anyhow::Ok(
            commands::set_disabled(&common.database().await?, &Holder::Till(till), disabled, invocation()).await?,
        )
    };
    match command {
        TillCommand::Disable(args) => set_disabled(args, true).await,
        TillCommand::Enable(args) => set_disabled(args, false).await,
        TillCommand::SetPassword(SetPasswordArgs { till: TillArgs { till, common }, password_file }) => {
            let connect = common.connect_options()?;
            let password = read_secret(password_file.as_deref(), "password")?;
            require_schema(&connect).await?;
            Ok(commands::set_secret(&connect, &Holder::Till(till), password, invocation()).await?)
        }
    }
}

pub(super) async fn client(command: ClientCommand) -> anyhow::Result<Outcome> {
    let set_disabled = async |ClientArgs { key, common }: ClientArgs, disabled| {
        anyhow::Ok(
            commands::set_disabled(&common.database().await?, &Holder::Client(key), disabled, invocation()).await?,
        )
    };
    match command {
        ClientCommand::Disable(args) => set_disabled(args, true).await,
        ClientCommand::Enable(args) => set_disabled(args, false).await,
        ClientCommand::SetSecret(SetSecretArgs { client: ClientArgs { key, common }, secret_file }) => {
            let connect = common.connect_options()?;
            let secret = read_secret(secret_file.as_deref(), "secret")?;
            require_schema(&connect).await?;
            Ok(commands::set_secret(&connect, &Holder::Client(key), secret, invocation()).await?)
        }
        ClientCommand::RevokeTokens(ClientArgs { key, common }) => {
            Ok(commands::revoke_tokens(&common.database().await?, &key, invocation()).await?)
        }
    }
}

/// Reads one line from a file or from standard input. On a terminal, asks twice and does not echo.
fn read_secret(file: Option<&Path>, what: &str) -> anyhow::Result<SecretString> {
    let bytes = match file {
        Some(file) => std::fs::read(file).with_context(|| file.display().to_string())?,
        None if std::io::stdin().is_terminal() => ask_for_secret(what)?.into_bytes(),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).with_context(|| format!("reading the {what}"))?;
            bytes
        }
    };
    secret_in(bytes).map_err(|error| anyhow!("the {what} {error}"))
}

fn ask_for_secret(what: &str) -> anyhow::Result<String> {
    let ask = |prompt: String| rpassword::prompt_password(prompt).with_context(|| format!("reading the {what}"));
    let first = ask(format!("New {what}: "))?;
    if first != ask(format!("The same {what} again: "))? {
        bail!("the two entries differ");
    }
    Ok(first)
}
