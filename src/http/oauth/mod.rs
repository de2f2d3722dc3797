pub(super) mod contract_token;
pub(super) mod metadata;
pub(super) mod token;
