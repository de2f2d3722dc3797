-- Who may issue: tills and clients that can be switched off, a till's own access, limits on requests, clients of outside
-- issuers of tokens, keys that are rotated, and a record of what was done to any of them.

-- All locks at once, in the order in which look-ups take them, and not for long: a look-up that waits for half of them would
-- wait for ever, and whatever waits behind this one must not wait for a backup.
set local lock_timeout = '5s';
lock table oauth_client, till, store, organisation, signing_key in access exclusive mode;

-- Requests a minute for each credential. Null: as the organisation says, and where that says nothing, the service; 0: no limit.
alter table organisation
    add column rate_limit_per_minute integer,
    add constraint organisation_rate_limit check (rate_limit_per_minute >= 0);

alter table till
    add column access                text,                              -- null: the store's
    add column disabled              boolean not null default false,
    add column rate_limit_per_minute integer,                           -- as above
    add constraint till_access check (access in ('none', 'read', 'write')),
    add constraint till_rate_limit check (rate_limit_per_minute >= 0);

-- Somebody else's authorisation server whose access tokens an organisation accepts.
create table token_issuer (
    org_id       bigint not null,
    issuer       text   not null,           -- as its tokens say it: "iss"
    audience     text   not null,           -- what "aud" must hold
    jwks_url     text,                      -- where its keys are; null: where its discovery document says
    client_claim text   not null,           -- the claim that holds our client's key
    algorithms   text[] not null,
    constraint token_issuer_pkey primary key (org_id, issuer),
    constraint token_issuer_organisation foreign key (org_id) references organisation,
    constraint token_issuer_algorithms check (cardinality(algorithms) > 0
        and algorithms <@ array['RS256', 'ES256', 'EdDSA'])
);

alter table oauth_client
    alter column secret_hash drop not null,
    add column issuer                text,              -- its tokens come from there, and it has no secret here
    add column disabled              boolean not null default false,
    add column rate_limit_per_minute integer,           -- as above
    add column tokens_from           timestamptz,       -- tokens made before are void; null: none is
    add constraint oauth_client_issuer foreign key (org_id, issuer) references token_issuer,
    add constraint oauth_client_proof check ((secret_hash is null) = (issuer is not null)),
    add constraint oauth_client_rate_limit check (rate_limit_per_minute >= 0);

-- The newest key whose time to sign has come signs; all of them verify, each until its end. A new one is published a while
-- before it signs, so that no replica meets a token of a key that it does not know.
alter table signing_key
    add column signs_from     timestamptz not null default now(),
    add column verifies_until timestamptz;              -- null: no successor yet
update signing_key set signs_from = created_at;

-- What was done to credentials and keys from the command line. Never a secret.
create table audit_entry (
    entry_id bigint      generated always as identity,
    at       timestamptz not null,
    org_id   bigint,                                    -- null: the service as a whole
    actor    text        not null,                      -- the user and host of the command
    action   text        not null,                      -- such as "till disable"
    subject  text        not null,                      -- the till, client or key
    constraint audit_entry_pkey primary key (entry_id)
);

-- Replicas remember good credentials for a while. This tells them, at the moment a change takes effect, to look again.
create function tell_credentials_changed() returns trigger language plpgsql as $$
begin
    perform pg_notify('coupon_issuer_credentials', '');
    return null;
end
$$;
create trigger credentials_changed after insert or update or delete on till
    for each statement execute function tell_credentials_changed();
create trigger credentials_changed after insert or update or delete on oauth_client
    for each statement execute function tell_credentials_changed();
create trigger credentials_changed after update or delete on store
    for each statement execute function tell_credentials_changed();
create trigger credentials_changed after update of default_access, rate_limit_per_minute or delete on organisation
    for each statement execute function tell_credentials_changed();
create trigger credentials_changed after insert or update or delete on token_issuer
    for each statement execute function tell_credentials_changed();
create trigger credentials_changed after insert or update or delete on signing_key
    for each statement execute function tell_credentials_changed();
