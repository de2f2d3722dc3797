use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use secrecy::SecretString;

use super::args::{
    ClientArgs, ClientCommand, Common, SetPasswordArgs, SetSecretArgs, TillArgs, TillCommand, require_schema,
};
use crate::model::{SystemClock, secret_in};
use crate::provisioning::commands::{self, Holder, Invocation, Outcome};

pub(super) async fn till(command: TillCommand) -> anyhow::Result<Outcome> {
    match command {
        TillCommand::Disable(TillArgs { till, common }) => set_disabled(Holder::Till(till), &common, true).await,
        TillCommand::Enable(TillArgs { till, common }) => set_disabled(Holder::Till(till), &common, false).await,
        TillCommand::SetPassword(SetPasswordArgs { till: TillArgs { till, common }, password_file }) => {
            set_secret(Holder::Till(till), &common, password_file.as_deref(), "password").await
        }
    }
}

pub(super) async fn client(command: ClientCommand) -> anyhow::Result<Outcome> {
    match command {
        ClientCommand::Disable(ClientArgs { key, common }) => set_disabled(Holder::Client(key), &common, true).await,
        ClientCommand::Enable(ClientArgs { key, common }) => set_disabled(Holder::Client(key), &common, false).await,
        ClientCommand::SetSecret(SetSecretArgs { client: ClientArgs { key, common }, secret_file }) => {
            set_secret(Holder::Client(key), &common, secret_file.as_deref(), "secret").await
        }
        ClientCommand::RevokeTokens(ClientArgs { key, common }) => {
            Ok(commands::revoke_tokens(&common.database().await?, &key, Invocation::now(&SystemClock)).await?)
        }
    }
}

async fn set_disabled(holder: Holder, common: &Common, disabled: bool) -> anyhow::Result<Outcome> {
    let connect = common.database().await?;
    Ok(commands::set_disabled(&connect, &holder, disabled, Invocation::now(&SystemClock)).await?)
}

async fn set_secret(holder: Holder, common: &Common, file: Option<&Path>, what: &str) -> anyhow::Result<Outcome> {
    let connect = common.connect_options()?;
    // Before the database is asked: whoever types a secret is not kept waiting.
    let secret = read_secret(file, what)?;
    require_schema(&connect).await?;
    Ok(commands::set_secret(&connect, &holder, secret, Invocation::now(&SystemClock)).await?)
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
