-- The tables. The functions are in 0002; README.md in this folder says how to add a migration.
--
-- Every primary, unique and foreign key begins with org_id: it separates the tenants and is the distribution key. Names that must be
-- unique across organisations have tables of their own (till_name, client_name). There are no triggers: the transaction that changes
-- a credential also sends the notification.
--
-- Settings have the names of the contract. An unlimited setting is null, never -1. Columns are ordered by alignment. Text that is
-- looked up for every coupon is compared by its bytes (collate "C"), which is faster than by the database's locale.

create table organisation (
    org_id                bigint   not null,
    revision              bigint   not null default 1,
    rate_limit_per_minute integer,
    natural_key           boolean  not null default false,
    name                  text     not null,
    time_zone             text     not null,
    customer_policy       text     not null,
    default_access        text     not null,
    recent_revisions      bigint[] not null default '{1}',
    constraint organisation_pkey primary key (org_id),
    constraint organisation_customer_policy check (customer_policy in ('open', 'registered')),
    constraint organisation_default_access check (default_access in ('none', 'read', 'write')),
    constraint organisation_rate_limit check (rate_limit_per_minute >= 0)
);
comment on table organisation is 'The tenants.';
comment on column organisation.org_id is 'The id of the organisation.';
comment on column organisation.revision is 'Identifies the settings that affect issuing; each change increases it. A coupon is written only if the revision is still that of its decision. At least the time of the change, in milliseconds since 1970: if a failover or a restore loses a change, no other change gets its revision.';
comment on column organisation.recent_revisions is 'The latest revisions, this one included. A replica that knows one of them learns from series.revision what changed since. Any other replica forgets what it knows.';
comment on column organisation.rate_limit_per_minute is 'Requests a minute for each credential without a limit of its own. Null: the service''s limit; 0: unlimited.';
comment on column organisation.natural_key is 'Whether customer, series, metadata.sourceType and metadata.sourceId identify an issuance.';
comment on column organisation.name is 'The name, for people.';
comment on column organisation.time_zone is 'The IANA time zone of its days and of the dates in responses.';
comment on column organisation.customer_policy is 'open: an unknown customer is created on first use; registered: an unknown customer is refused.';
comment on column organisation.default_access is 'The access of a store that has none of its own.';

create table store (
    org_id         bigint not null,
    store_id       bigint not null,
    name           text   not null,
    access         text,
    code           text,
    external_id    text,
    external_id_1  text,
    external_id_2  text,
    effective_code text   not null generated always as (coalesce(code, store_id::text)) stored,
    constraint store_pkey primary key (org_id, store_id),
    constraint store_organisation foreign key (org_id) references organisation,
    constraint store_access check (access in ('none', 'read', 'write')),
    -- Deferred: one `apply` may swap names between two stores.
    constraint store_code unique (org_id, effective_code) deferrable initially deferred,
    constraint store_external_id unique (org_id, external_id) deferrable initially deferred,
    constraint store_external_id_1 unique (org_id, external_id_1) deferrable initially deferred,
    constraint store_external_id_2 unique (org_id, external_id_2) deferrable initially deferred
);
-- Several stores may share a name.
create index store_name on store (org_id, name);
comment on table store is 'The shops.';
comment on column store.org_id is 'The organisation.';
comment on column store.store_id is 'The id of the store, by which series name it.';
comment on column store.name is 'The name, for people and for attribution.';
comment on column store.access is 'The access of its tills. Null: the organisation''s default.';
comment on column store.code is 'The code by which attribution names it. Null: the id.';
comment on column store.external_id is 'The first of the names that other systems have for it.';
comment on column store.external_id_1 is 'The second of these names.';
comment on column store.external_id_2 is 'The third of these names.';
comment on column store.effective_code is 'The code, or the id where there is no code.';

create table till (
    org_id                bigint   not null,
    store_id              bigint  not null,
    rate_limit_per_minute integer,
    disabled              boolean not null default false,
    till_id               text    not null,
    password_hash         text    not null,
    access                text,
    constraint till_pkey primary key (org_id, till_id),
    constraint till_store foreign key (org_id, store_id) references store,
    constraint till_access check (access in ('none', 'read', 'write')),
    constraint till_rate_limit check (rate_limit_per_minute >= 0)
);
comment on table till is 'The tills, which log in by Basic.';
comment on column till.org_id is 'The organisation.';
comment on column till.store_id is 'The store in which it stands.';
comment on column till.rate_limit_per_minute is 'Requests a minute. Null: the organisation''s limit; 0: unlimited.';
comment on column till.disabled is 'Whether its login is disabled.';
comment on column till.till_id is 'The name by which it logs in.';
comment on column till.password_hash is 'argon2id over the MD5 that the till protocol sends.';
comment on column till.access is 'Its access. Null: the store''s.';

create table till_name (
    org_id  bigint not null,
    till_id text   not null,
    constraint till_name_pkey primary key (till_id)
);
comment on table till_name is 'The organisation of each till: a till logs in by its name alone, so the name is unique over all organisations.';
comment on column till_name.org_id is 'The organisation.';
comment on column till_name.till_id is 'The name of the till.';

create table token_issuer (
    org_id       bigint not null,
    issuer       text   not null,
    audience     text   not null,
    jwks_url     text,
    client_claim text   not null,
    algorithms   text[] not null,
    constraint token_issuer_pkey primary key (org_id, issuer),
    constraint token_issuer_organisation foreign key (org_id) references organisation,
    constraint token_issuer_algorithms check (cardinality(algorithms) > 0
        and algorithms <@ array['RS256', 'ES256', 'EdDSA'])
);
comment on table token_issuer is 'External authorisation servers. The organisation accepts their access tokens.';
comment on column token_issuer.org_id is 'The organisation.';
comment on column token_issuer.issuer is 'The claim "iss" of its tokens.';
comment on column token_issuer.audience is 'The value that the claim "aud" must hold.';
comment on column token_issuer.jwks_url is 'The address of its keys. Null: the one in its discovery document.';
comment on column token_issuer.client_claim is 'The claim that holds the client key.';
comment on column token_issuer.algorithms is 'The signature algorithms that are accepted.';

create table oauth_client (
    org_id                bigint   not null,
    tokens_from           timestamptz,
    token_ttl_seconds     integer not null,
    rate_limit_per_minute integer,
    disabled              boolean not null default false,
    client_key            text    not null,
    till_id               text    not null,
    access                text    not null,
    secret_hash           text,
    issuer                text,
    constraint oauth_client_pkey primary key (org_id, client_key),
    constraint oauth_client_till foreign key (org_id, till_id) references till,
    constraint oauth_client_issuer foreign key (org_id, issuer) references token_issuer,
    constraint oauth_client_access check (access in ('none', 'read', 'write')),
    constraint oauth_client_proof check ((secret_hash is null) = (issuer is not null)),
    constraint oauth_client_rate_limit check (rate_limit_per_minute >= 0)
);
comment on table oauth_client is 'The OAuth clients.';
comment on column oauth_client.org_id is 'The organisation.';
comment on column oauth_client.tokens_from is 'Tokens issued before this instant are void. Null: no token is void.';
comment on column oauth_client.token_ttl_seconds is 'The lifetime of its tokens in seconds.';
comment on column oauth_client.rate_limit_per_minute is 'Requests a minute. Null: the organisation''s limit; 0: unlimited.';
comment on column oauth_client.disabled is 'Whether its login is disabled.';
comment on column oauth_client.client_key is 'The key by which it logs in.';
comment on column oauth_client.till_id is 'The till, and with it the store, of its coupons, unless the request names another one.';
comment on column oauth_client.access is 'Its access.';
comment on column oauth_client.secret_hash is 'argon2id over its secret. Null: it authenticates by tokens of an external issuer.';
comment on column oauth_client.issuer is 'The external issuer of its tokens. Null: it has a secret.';

create table client_name (
    org_id     bigint not null,
    client_key text   not null,
    constraint client_name_pkey primary key (client_key)
);
comment on table client_name is 'The organisation of each OAuth client: its key is unique over all organisations.';
comment on column client_name.org_id is 'The organisation.';
comment on column client_name.client_key is 'The key of the client.';

create table signing_key (
    signs_from     timestamptz not null default now(),
    verifies_until timestamptz,
    created_at     timestamptz not null default now(),
    kid            text        not null,
    private_key    bytea       not null,
    constraint signing_key_pkey primary key (kid)
);
comment on table signing_key is 'The keys of access tokens, shared by all replicas. The newest key whose signs_from has passed signs. Every key verifies until its verifies_until.';
comment on column signing_key.signs_from is 'When the key starts to sign: later than created_at, so that every replica has loaded it before.';
comment on column signing_key.verifies_until is 'When its last token ends. Null: the key has no successor yet.';
comment on column signing_key.created_at is 'When it was stored.';
comment on column signing_key.kid is 'Its name in the header of a token.';
comment on column signing_key.private_key is 'PKCS#8, DER.';

create table customer (
    org_id      bigint  not null,
    registered  boolean not null,
    customer_id text    not null,
    mobile      text,
    email       text,
    external_id text,
    constraint customer_pkey primary key (org_id, customer_id),
    constraint customer_organisation foreign key (org_id) references organisation,
    constraint customer_mobile unique (org_id, mobile),
    constraint customer_email unique (org_id, email),
    constraint customer_external_id unique (org_id, external_id)
);
comment on table customer is 'The customers who have a mobile number, an e-mail address or an external id, or are registered. An open organisation needs no row for a customer with only an id.';
comment on column customer.org_id is 'The organisation.';
comment on column customer.registered is 'True: `apply` lists the customer; false: a request created the customer.';
comment on column customer.customer_id is 'The id, as callers send it.';
comment on column customer.mobile is 'The mobile number, digits only.';
comment on column customer.email is 'The e-mail address, in lower case.';
comment on column customer.external_id is 'The id in another system.';

create table series (
    org_id                                bigint      not null,
    series_id                             bigint      not null,
    discount_value                        bigint      not null,
    discount_upto                         bigint      not null,
    max_create                            bigint,
    revision                              bigint      not null default 1,
    limits_changed_at                     timestamptz not null default clock_timestamp(),
    version                               integer     not null default 0,
    valid_till_date                       date        not null,
    redemption_valid_from                 date,
    expiry_strategy_value                 integer     not null,
    random_code_length                    integer     not null,
    max_vouchers_per_user                 integer,
    min_days_between_vouchers             integer,
    alpha_numeric                         boolean     not null,
    is_multiple_vouchers_per_user_allowed boolean     not null,
    do_not_resend_existing_voucher        boolean     not null,
    externally_managed                    boolean     not null,
    description                           text        not null,
    info                                  text        not null,
    discount_code                         text,
    discount_type                         text        not null,
    expiry_strategy_type                  text        not null,
    client_handling_type                  text        not null,
    coupon_prefix                         text        not null,
    coupon_suffix                         text        not null,
    generic_code                          text,
    mutual_exclusive_series_ids           bigint[]    not null,
    store_ids                             bigint[]    not null,
    constraint series_pkey primary key (org_id, series_id),
    constraint series_organisation foreign key (org_id) references organisation,
    constraint series_discount_type check (discount_type in ('ABS', 'PERC')),
    constraint series_expiry_strategy check (expiry_strategy_type in ('SERIES_EXPIRY', 'DAYS', 'MONTHS_END')),
    constraint series_client_handling check (client_handling_type in ('DISC_CODE', 'GENERIC', 'DISC_CODE_PIN')),
    constraint series_generic_code check ((client_handling_type = 'GENERIC') = (generic_code is not null))
);
create index series_revision on series (org_id, revision);
comment on table series is 'The coupon series with their settings, named as in the contract.';
comment on column series.org_id is 'The organisation.';
comment on column series.series_id is 'The id of the series, by which requests name it.';
comment on column series.discount_value is 'discountValue: a percentage, or an amount in the organisation''s currency.';
comment on column series.discount_upto is 'discountUpto: the largest discount; 0: unlimited.';
comment on column series.max_create is 'maxCreate: the cap. Null: unlimited.';
comment on column series.revision is 'The organisation''s revision of the last change of the series or its exclusions.';
comment on column series.limits_changed_at is 'When its limits last changed, by the database''s clock: earlier coupons were issued under other limits.';
comment on column series.version is 'The series_version that new coupons show. 0 only between an insert and the end of its transaction.';
comment on column series.valid_till_date is 'validTillDate: its last day.';
comment on column series.redemption_valid_from is 'redemptionValidFrom: the first day on which a coupon can be redeemed.';
comment on column series.expiry_strategy_value is 'expiryStrategyValue: days or months; 0 for SERIES_EXPIRY.';
comment on column series.random_code_length is 'randomCodeLength: characters of the random part; 0 unless DISC_CODE.';
comment on column series.max_vouchers_per_user is 'maxVouchersPerUser: the most coupons of a customer. Null: unlimited.';
comment on column series.min_days_between_vouchers is 'minDaysBetweenVouchers: the gap in days. Null: none.';
comment on column series.alpha_numeric is 'alphaNumeric. True: letters and digits; false: digits.';
comment on column series.is_multiple_vouchers_per_user_allowed is 'isMultipleVouchersPerUserAllowed.';
comment on column series.do_not_resend_existing_voucher is 'doNotResendExistingVoucher.';
comment on column series.externally_managed is 'externallyManaged: another system issues it.';
comment on column series.description is 'description.';
comment on column series.info is 'info: detailedInfo in the response.';
comment on column series.discount_code is 'discountCode. Null: the response shows NO_VALUE.';
comment on column series.discount_type is 'discountType.';
comment on column series.expiry_strategy_type is 'expiryStrategyType.';
comment on column series.client_handling_type is 'clientHandlingType: DISC_CODE generated, GENERIC one common code, DISC_CODE_PIN uploaded.';
comment on column series.coupon_prefix is 'couponPrefix, upper case; empty unless DISC_CODE.';
comment on column series.coupon_suffix is 'couponSuffix, upper case; empty unless DISC_CODE.';
comment on column series.generic_code is 'genericCode, as it is shown; null unless GENERIC.';
comment on column series.mutual_exclusive_series_ids is 'mutualExclusiveSeriesIds, as the series lists them.';
comment on column series.store_ids is 'storeIds: the stores that may issue it; empty: all.';

create table series_version (
    org_id         bigint  not null,
    series_id      bigint  not null,
    discount_value bigint  not null,
    discount_upto  bigint  not null,
    version        integer not null,
    description    text    not null,
    info           text    not null,
    discount_code  text,
    discount_type  text    not null,
    generic_code   text,
    time_zone      text    not null,
    constraint series_version_pkey primary key (org_id, series_id, version)
);
comment on table series_version is 'The series snapshots: what a response shows of a series, one row for each change. Every coupon names the version that its response showed. Rows are never changed or deleted.';
comment on column series_version.org_id is 'The organisation.';
comment on column series_version.series_id is 'The series.';
comment on column series_version.discount_value is 'series.discount_value.';
comment on column series_version.discount_upto is 'series.discount_upto.';
comment on column series_version.version is '1, 2, 3 … for each series.';
comment on column series_version.description is 'series.description.';
comment on column series_version.info is 'series.info.';
comment on column series_version.discount_code is 'series.discount_code.';
comment on column series_version.discount_type is 'series.discount_type.';
comment on column series_version.generic_code is 'series.generic_code: the code of every coupon of this version, if it is not null.';
comment on column series_version.time_zone is 'organisation.time_zone: the zone of the dates in the response.';

create table series_exclusion (
    org_id             bigint not null,
    series_id          bigint not null,
    excluded_series_id bigint not null,
    constraint series_exclusion_pkey primary key (org_id, series_id, excluded_series_id)
);
comment on table series_exclusion is 'mutual_exclusive_series_ids of both sides: an exclusion holds whichever of the two series names the other.';
comment on column series_exclusion.org_id is 'The organisation.';
comment on column series_exclusion.series_id is 'One of the two series.';
comment on column series_exclusion.excluded_series_id is 'The other.';

create table series_counter (
    org_id    bigint not null,
    series_id bigint not null,
    issued    bigint not null,
    constraint series_counter_pkey primary key (org_id, series_id, issued)
);
comment on table series_counter is 'The number of coupons that a series with a cap has issued: the highest value counts. Each coupon inserts a row under the lock on the series, and every hundredth deletes the lower rows. No row is updated: while a long transaction blocks vacuum, dead versions would pile up in front of the live one. The count includes revoked coupons: revocations need a count of their own, under the same lock.';
comment on column series_counter.org_id is 'The organisation.';
comment on column series_counter.series_id is 'The series.';
comment on column series_counter.issued is 'The number of coupons issued, the revoked ones included.';

create table pool_code (
    org_id        bigint not null,
    series_id     bigint not null,
    position      bigint,
    code          text   not null collate "C",
    uploaded_code text,
    customer_id   text   collate "C",
    constraint pool_code_pkey primary key (org_id, code),
    constraint pool_code_position unique (org_id, series_id, position),
    constraint pool_code_for check ((position is null) = (customer_id is not null))
);
create index pool_code_customer on pool_code (org_id, series_id, customer_id) where customer_id is not null;
comment on table pool_code is 'Uploaded codes that have not been given out. The transaction of a coupon deletes its code here.';
comment on column pool_code.org_id is 'The organisation.';
comment on column pool_code.series_id is 'The series whose pool it is.';
comment on column pool_code.position is 'The order in which codes for any customer are given out, from 1. Null: the code is for one customer.';
comment on column pool_code.code is 'The code in upper case (ASCII): the form in which codes are compared. Ordered by bytes, so that the index finds codes by their prefix.';
comment on column pool_code.uploaded_code is 'The code as it was uploaded and is shown. Null: it equals code.';
comment on column pool_code.customer_id is 'The only customer who may receive the code. Null: any customer.';

create table pool_counter (
    org_id    bigint not null,
    series_id bigint not null,
    position  bigint not null,
    constraint pool_counter_pkey primary key (org_id, series_id, position)
);
comment on table pool_counter is 'The first position that a call gave out when it began to use the pool; the highest value counts. The search for the next code begins behind it and skips the codes that were deleted since.';
comment on column pool_counter.org_id is 'The organisation.';
comment on column pool_counter.series_id is 'The series.';
comment on column pool_counter.position is 'The position; the highest value counts.';

create table code_import (
    org_id      bigint      not null,
    series_id   bigint      not null,
    bytes_done  bigint      not null default 0,
    lines_done  bigint      not null default 0,
    accepted    bigint      not null default 0,
    duplicates  bigint      not null default 0,
    malformed   bigint      not null default 0,
    started_at  timestamptz not null default now(),
    finished_at timestamptz,
    file_sha256 bytea       not null,
    constraint code_import_pkey primary key (org_id, series_id, file_sha256)
);
comment on table code_import is 'The progress of each upload. An upload that broke off resumes from here.';
comment on column code_import.org_id is 'The organisation.';
comment on column code_import.series_id is 'The series.';
comment on column code_import.bytes_done is 'The bytes of the file that are done.';
comment on column code_import.lines_done is 'The lines that are done.';
comment on column code_import.accepted is 'Lines whose code was added to the pool.';
comment on column code_import.duplicates is 'Lines whose code existed already, or that a series could generate.';
comment on column code_import.malformed is 'Lines without a code.';
comment on column code_import.started_at is 'When the upload began.';
comment on column code_import.finished_at is 'When the upload was finished. Null: it was not.';
comment on column code_import.file_sha256 is 'The SHA-256 of the file, by which a retried upload finds its progress.';

create table origin (
    org_id     bigint  not null,
    store_id   bigint  not null,
    origin_id  integer not null,
    source     text    not null,
    till_id    text,
    client_key text,
    constraint origin_pkey primary key (org_id, origin_id)
);
create unique index origin_names on origin (org_id, store_id, source, coalesce(till_id, ''), coalesce(client_key, ''));
comment on table origin is 'Who issues, where and by which channel, once for each combination, so that a coupon names it in four bytes. Rows are never changed or deleted.';
comment on column origin.org_id is 'The organisation.';
comment on column origin.store_id is 'The store to which the coupons are attributed.';
comment on column origin.origin_id is 'A number derived from the other columns (function origin_1).';
comment on column origin.source is 'The query parameter source.';
comment on column origin.till_id is 'The till to which the coupons are attributed. Null: a client issues for the store as a whole.';
comment on column origin.client_key is 'The OAuth client that issues. Null: the till itself does.';

create table coupon (
    org_id           bigint      not null,
    coupon_id        bigint      not null,
    series_id        bigint      not null,
    issued_at        timestamptz not null,
    revoked_at       timestamptz,
    request_uuid     uuid,
    series_version   integer     not null,
    origin_id        integer     not null,
    expires_on       date        not null,
    ordinal          integer,
    redemption_count integer,
    customer_id      text        not null collate "C",
    code             text        collate "C",
    uploaded_code    text,
    request_id       text,
    account_id       text,
    metadata         jsonb,
    constraint coupon_pkey primary key (org_id, coupon_id)
);
-- Generic coupons have no code of their own, and null differs from null.
create unique index coupon_code on coupon (org_id, code);
-- Enforces every per-customer rule: of two requests that both issue number 2, one is refused.
create unique index coupon_ordinal on coupon (org_id, customer_id, series_id, ordinal);
comment on table coupon is 'The coupons. No foreign keys: each would lock a row for each coupon; the write is guarded by the organisation''s revision instead. `coupon-issuer verify` checks what the keys would.';
comment on column coupon.org_id is 'The organisation.';
comment on column coupon.coupon_id is 'Its number, below 2^53 and unique in the organisation, from a leased range (function lease_coupon_ids_1).';
comment on column coupon.series_id is 'The series.';
comment on column coupon.issued_at is 'When the coupon was decided, by the replica''s clock.';
comment on column coupon.revoked_at is 'When it was revoked. A revoked coupon no longer counts for its customer. No command revokes coupons yet.';
comment on column coupon.request_uuid is 'The X-Request-Id of the request, if it is a UUID: 16 bytes instead of 37.';
comment on column coupon.series_version is 'The series_version that its response showed.';
comment on column coupon.origin_id is 'Who issued it, where and by which channel.';
comment on column coupon.expires_on is 'Its last day.';
comment on column coupon.ordinal is 'The number of the coupon among the customer''s coupons of the series: 1, 2, 3 …. Null: earlier coupons do not matter in this series.';
comment on column coupon.redemption_count is 'The number of redemptions. Null: none, which saves four bytes.';
comment on column coupon.customer_id is 'The customer.';
comment on column coupon.code is 'The code in upper case (ASCII): the form in which codes are compared. Null: the generic code of the series_version.';
comment on column coupon.uploaded_code is 'The code as it was uploaded and is shown. Null: it equals code.';
comment on column coupon.request_id is 'The X-Request-Id of the request, if it is not a UUID.';
comment on column coupon.account_id is 'The query parameter accountId.';
comment on column coupon.metadata is 'metadata of the request.';

create view issued_coupon as
select c.org_id, c.coupon_id, c.series_id, c.customer_id, coalesce(c.uploaded_code, c.code, v.generic_code) as code,
       c.issued_at, c.expires_on, c.revoked_at, c.ordinal, coalesce(c.redemption_count, 0) as redemption_count,
       coalesce(c.request_uuid::text, c.request_id) as request_id,
       o.store_id, o.till_id, o.client_key, o.source, c.account_id, c.metadata,
       c.series_version, v.description, v.info, v.discount_code, v.discount_type, v.discount_value, v.discount_upto, v.time_zone
  from coupon c
  join series_version v on v.org_id = c.org_id and v.series_id = c.series_id and v.version = c.series_version
  join origin o on o.org_id = c.org_id and o.origin_id = c.origin_id;
comment on view issued_coupon is 'The coupons with everything that they refer to: for people and reports.';
comment on column issued_coupon.org_id is 'coupon.org_id.';
comment on column issued_coupon.coupon_id is 'coupon.coupon_id.';
comment on column issued_coupon.series_id is 'coupon.series_id.';
comment on column issued_coupon.customer_id is 'coupon.customer_id.';
comment on column issued_coupon.code is 'The code as it is shown.';
comment on column issued_coupon.issued_at is 'coupon.issued_at.';
comment on column issued_coupon.expires_on is 'coupon.expires_on.';
comment on column issued_coupon.revoked_at is 'coupon.revoked_at.';
comment on column issued_coupon.ordinal is 'coupon.ordinal.';
comment on column issued_coupon.redemption_count is 'coupon.redemption_count.';
comment on column issued_coupon.request_id is 'The X-Request-Id of the request.';
comment on column issued_coupon.store_id is 'origin.store_id.';
comment on column issued_coupon.till_id is 'origin.till_id.';
comment on column issued_coupon.client_key is 'origin.client_key.';
comment on column issued_coupon.source is 'origin.source.';
comment on column issued_coupon.account_id is 'coupon.account_id.';
comment on column issued_coupon.metadata is 'coupon.metadata.';
comment on column issued_coupon.series_version is 'coupon.series_version.';
comment on column issued_coupon.description is 'series_version.description.';
comment on column issued_coupon.info is 'series_version.info.';
comment on column issued_coupon.discount_code is 'series_version.discount_code.';
comment on column issued_coupon.discount_type is 'series_version.discount_type.';
comment on column issued_coupon.discount_value is 'series_version.discount_value.';
comment on column issued_coupon.discount_upto is 'series_version.discount_upto.';
comment on column issued_coupon.time_zone is 'series_version.time_zone.';

create table keyed_request (
    org_id          bigint      not null,
    first_coupon_id bigint      not null,
    fingerprint     bigint      not null,
    received_at     timestamptz not null,
    attempt         integer     not null,
    incarnation     smallint    not null,
    key_hash        uuid        not null,
    answers         text        not null,
    constraint keyed_request_pkey primary key (org_id, key_hash)
);
-- received_at has whole seconds, so that equal values share an entry of this index.
create index keyed_request_received on keyed_request (received_at);
comment on table keyed_request is 'The requests with an Idempotency-Key: what they asked for, which attempt is at work, and the answers other than a new coupon. No column is nullable, which saves the null bitmap (8 bytes a row).';
comment on column keyed_request.org_id is 'The organisation.';
comment on column keyed_request.first_coupon_id is 'The first of the reserved coupon ids, one for each entity in order. An entity is issued if its coupon exists. It also identifies the claim: no other claim has the same value.';
comment on column keyed_request.fingerprint is 'One byte of version and seven bytes of a hash of everything that the request asks for. Another request under the same key is refused.';
comment on column keyed_request.received_at is 'When the request was first seen, by the database''s clock, in whole seconds.';
comment on column keyed_request.incarnation is 'The incarnation of the replica whose attempt is at work (advisory lock 20193). 0: no attempt is at work.';
comment on column keyed_request.attempt is 'The fencing number of the latest attempt: the time from received_at to its claim in 1/64 seconds, or one more than the attempt before if that is greater. The first attempt is 0. The lease begins at the claim.';
comment on column keyed_request.key_hash is 'The first 16 bytes of the SHA-256 of the Idempotency-Key (function key_hash_1).';
comment on column keyed_request.answers is 'The entities in order, separated by spaces: the series id, and the answer if it is not a new coupon (README.md in the folder of the migrations, "Answers").';

create table natural_issuance (
    org_id      bigint      not null,
    series_id   bigint      not null,
    coupon_id   bigint      not null,
    issued_at   timestamptz not null,
    natural_key uuid        not null,
    constraint natural_issuance_pkey primary key (org_id, natural_key, series_id)
);
create index natural_issuance_issued on natural_issuance (issued_at);
comment on table natural_issuance is 'The coupon of each natural key, committed together with it. Where organisation.natural_key is true, a series is issued once for each key.';
comment on column natural_issuance.org_id is 'The organisation.';
comment on column natural_issuance.series_id is 'The series.';
comment on column natural_issuance.coupon_id is 'The coupon.';
comment on column natural_issuance.issued_at is 'coupon.issued_at. The retention time counts from here.';
comment on column natural_issuance.natural_key is 'The first 16 bytes of a SHA-256 over customer, metadata.sourceType and metadata.sourceId.';

create table coupon_id_lease (
    next_id  bigint  not null default 1,
    only_row boolean not null default true,
    constraint coupon_id_lease_pkey primary key (only_row),
    constraint coupon_id_lease_only_row check (only_row),
    constraint coupon_id_lease_range check (next_id between 1 and 9007199254740992)
);
insert into coupon_id_lease default values;
comment on table coupon_id_lease is 'Where the next lease of coupon ids begins. One row for all organisations, so that one lease serves every organisation.';
comment on column coupon_id_lease.next_id is 'The lowest id that no lease contains. Below 2^53: up to there every JSON reader keeps integers exact.';
comment on column coupon_id_lease.only_row is 'True: there is one row.';

create table incarnation (
    latest   smallint not null default 0,
    only_row boolean  not null default true,
    constraint incarnation_pkey primary key (only_row),
    constraint incarnation_only_row check (only_row)
);
insert into incarnation default values;
comment on table incarnation is 'The last incarnation number given to a replica. A replica holds the advisory lock (20193, number) while it lives.';
comment on column incarnation.latest is 'The number; after 32767 it starts again at 1. A number matters only until the leases of the attempts under it end, so that no replica is mistaken for an earlier one of the same number.';
comment on column incarnation.only_row is 'True: there is one row.';

create table audit_log (
    entry_id bigint      generated always as identity,
    at       timestamptz not null,
    org_id   bigint,
    actor    text        not null,
    action   text        not null,
    subject  text        not null,
    constraint audit_log_pkey primary key (entry_id)
);
comment on table audit_log is 'The audit log: the changes that administrative commands made to credentials and keys. It never holds a secret.';
comment on column audit_log.entry_id is 'The number of the entry.';
comment on column audit_log.at is 'When the command ran.';
comment on column audit_log.org_id is 'The organisation. Null: the service as a whole.';
comment on column audit_log.actor is 'The user and host of the command.';
comment on column audit_log.action is 'The command, such as "till disable".';
comment on column audit_log.subject is 'The till, client or key.';

create table activity_minute (
    org_id    bigint      not null,
    series_id bigint      not null,
    minute    timestamptz not null,
    entities  bigint      not null,
    outcome   text        not null,
    constraint activity_minute_pkey primary key (org_id, series_id, minute, outcome)
) with (fillfactor = 80);
create index activity_minute_age on activity_minute (minute);
comment on table activity_minute is 'The number of entities answered in each minute of the last hours. No decision reads the activity tables, and their writes are not flushed: a crash may lose the last seconds.';
comment on column activity_minute.org_id is 'The organisation.';
comment on column activity_minute.series_id is 'The series. 0: everything that the organisation was asked for, unknown series included.';
comment on column activity_minute.minute is 'The minute.';
comment on column activity_minute.entities is 'The number of entities.';
comment on column activity_minute.outcome is 'issued, resent, replayed, or the name of a refusal.';

create table activity_total (
    org_id    bigint not null,
    series_id bigint not null,
    entities  bigint not null,
    outcome   text   not null,
    constraint activity_total_pkey primary key (org_id, series_id, outcome)
) with (fillfactor = 80);
comment on table activity_total is 'The number of entities answered since counting began.';
comment on column activity_total.org_id is 'The organisation.';
comment on column activity_total.series_id is 'As in activity_minute.';
comment on column activity_total.entities is 'The number of entities.';
comment on column activity_total.outcome is 'As in activity_minute.';

create table activity_series (
    org_id      bigint      not null,
    series_id   bigint      not null,
    since       timestamptz not null,
    last_minute timestamptz not null,
    constraint activity_series_pkey primary key (org_id, series_id)
) with (fillfactor = 80);
create index activity_series_latest on activity_series (org_id, last_minute, series_id);
comment on table activity_series is 'The series that were asked for lately.';
comment on column activity_series.org_id is 'The organisation.';
comment on column activity_series.series_id is 'As in activity_minute.';
comment on column activity_series.since is 'When counting began.';
comment on column activity_series.last_minute is 'The last minute in which it was asked for.';

create table activity_failure (
    org_id     bigint      not null,
    at         timestamptz not null,
    failure_id bigint      generated always as identity,
    series_id  bigint      not null,
    store_id   bigint      not null,
    request_id text        not null,
    outcome    text        not null,
    till_id    text,
    client_key text,
    constraint activity_failure_pkey primary key (org_id, at, failure_id)
);
create index activity_failure_age on activity_failure (at);
comment on table activity_failure is 'The newest entities of each organisation that got no coupon. It never holds a code or anything about a customer.';
comment on column activity_failure.org_id is 'The organisation.';
comment on column activity_failure.at is 'When it was answered.';
comment on column activity_failure.failure_id is 'Distinguishes failures of the same instant.';
comment on column activity_failure.series_id is 'The series, as the request named it.';
comment on column activity_failure.store_id is 'The store of the caller.';
comment on column activity_failure.request_id is 'The X-Request-Id.';
comment on column activity_failure.outcome is 'The name of the refusal.';
comment on column activity_failure.till_id is 'The till of the caller. Null: a client that acts for a store.';
comment on column activity_failure.client_key is 'The OAuth client. Null: the till itself.';

create table activity_writer (
    batch  bigint      not null,
    at     timestamptz not null,
    writer uuid        not null,
    constraint activity_writer_pkey primary key (writer)
);
comment on table activity_writer is 'The last batch of counts that each replica added. A retry after a lost answer does not add a batch twice.';
comment on column activity_writer.batch is 'The number of the batch.';
comment on column activity_writer.at is 'When it was added.';
comment on column activity_writer.writer is 'Identifies the replica since its start.';

create table schema_floor (
    version  bigint  not null,
    only_row boolean not null default true,
    constraint schema_floor_pkey primary key (only_row),
    constraint schema_floor_only_row check (only_row)
);
insert into schema_floor (version) values (2);
comment on table schema_floor is 'The oldest version of the service that works on this schema.';
comment on column schema_floor.version is 'The newest migration that such a version must know.';
comment on column schema_floor.only_row is 'True: there is one row.';
