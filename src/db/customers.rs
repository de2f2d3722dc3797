use sqlx::FromRow;

use super::connection::Db;
use super::error::DbError;
use crate::model::{CustomerId, Identifiers, OrgId};

/// A customer who has at least one of the identifiers of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomerLookup {
    /// The customer's id.
    pub id: CustomerId,
    /// Whether `apply` lists the customer.
    pub registered: bool,
    /// All identifiers of the customer.
    pub identifiers: Identifiers,
}

#[derive(FromRow)]
pub(super) struct CustomerRow {
    customer_id: String,
    mobile: Option<String>,
    email: Option<String>,
    external_id: Option<String>,
    registered: bool,
}

impl From<CustomerRow> for CustomerLookup {
    fn from(row: CustomerRow) -> Self {
        let id = CustomerId(row.customer_id);
        let identifiers =
            Identifiers { id: Some(id.clone()), mobile: row.mobile, external_id: row.external_id, email: row.email };
        Self { id, registered: row.registered, identifiers }
    }
}

impl Db {
    /// Every customer who has one of these identifiers.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn customers_named(
        &self,
        org_id: OrgId,
        identifiers: &Identifiers,
    ) -> Result<Vec<CustomerLookup>, DbError> {
        let rows: Vec<CustomerRow> = sqlx::query_as(
            "select customer_id, mobile, email, external_id, registered
               from customer
              where org_id = $1 and (customer_id = $2 or mobile = $3 or external_id = $4 or email = $5)",
        )
        .bind(org_id.0)
        .bind(identifiers.id.as_ref().map(|id| &id.0))
        .bind(&identifiers.mobile)
        .bind(&identifiers.external_id)
        .bind(&identifiers.email)
        .fetch_all(&mut *self.connection().await?)
        .await?;
        Ok(rows.into_iter().map(CustomerLookup::from).collect())
    }

    /// Creates a customer with these identifiers. False: another customer has one of them meanwhile, or the organisation is no longer
    /// open; no customer was created.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn add_customer(
        &self,
        org_id: OrgId,
        id: &CustomerId,
        identifiers: &Identifiers,
    ) -> Result<bool, DbError> {
        let done = sqlx::query(
            "insert into customer (org_id, customer_id, mobile, external_id, email, registered)
             select org_id, $2, $3, $4, $5, false from organisation where org_id = $1 and customer_policy = 'open'
             on conflict do nothing",
        )
        .bind(org_id.0)
        .bind(&id.0)
        .bind(&identifiers.mobile)
        .bind(&identifiers.external_id)
        .bind(&identifiers.email)
        .execute(&mut *self.connection().await?)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Adds those identifiers whose kind the customer does not have yet. False: another customer has one of them meanwhile, and nothing
    /// was changed.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn complete_customer(
        &self,
        org_id: OrgId,
        id: &CustomerId,
        identifiers: &Identifiers,
    ) -> Result<bool, DbError> {
        let done = sqlx::query(
            "update customer
                set mobile = coalesce(mobile, $3), external_id = coalesce(external_id, $4), email = coalesce(email, $5)
              where org_id = $1 and customer_id = $2",
        )
        .bind(org_id.0)
        .bind(&id.0)
        .bind(&identifiers.mobile)
        .bind(&identifiers.external_id)
        .bind(&identifiers.email)
        .execute(&mut *self.connection().await?)
        .await;
        match done {
            Ok(_) => Ok(true),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
