use std::collections::BTreeMap;

use super::transaction::Provisioning;
use crate::db::customers::{CustomerLookup, CustomerRow};
use crate::db::error::DbError;
use crate::model::{CustomerId, CustomerPlan, IdentifierPlan, OrgId};

impl Provisioning {
    /// The listed customers, registered or created on first use, and those who have an identifier that is given to another.
    pub(super) async fn customers(
        &mut self,
        org_id: OrgId,
        listed: &[CustomerPlan],
    ) -> Result<BTreeMap<CustomerId, CustomerLookup>, DbError> {
        let ids: Vec<&str> = listed.iter().map(|customer| customer.id.0.as_str()).collect();
        let [mobiles, emails, external_ids] = given(|| listed.iter());
        let rows: Vec<CustomerRow> = sqlx::query_as(
            "select customer_id, mobile, email, external_id, registered from customer
              where org_id = $1
                and (customer_id = any ($2) or mobile = any ($3) or email = any ($4) or external_id = any ($5))",
        )
        .bind(org_id.0)
        .bind(ids)
        .bind(mobiles)
        .bind(emails)
        .bind(external_ids)
        .fetch_all(&mut self.connection)
        .await?;
        Ok(rows.into_iter().map(CustomerLookup::from).map(|customer| (customer.id.clone(), customer)).collect())
    }

    /// Registers customers and writes their identifiers as a set: one customer may get what another gives up.
    ///
    /// # Errors
    /// When the database cannot be asked, or another customer has an identifier (see [`is_overtaken`]).
    pub async fn put_customers(&mut self, org_id: OrgId, customers: &[&CustomerPlan]) -> Result<(), DbError> {
        if customers.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = customers.iter().map(|customer| customer.id.0.as_str()).collect();
        // Locks the customers: no request adds identifiers to them between the statements below.
        sqlx::query(
            "insert into customer (org_id, customer_id, registered) select $1, unnest($2::text[]), true
             on conflict (org_id, customer_id) do update set registered = true",
        )
        .bind(org_id.0)
        .bind(&ids)
        .execute(&mut self.connection)
        .await?;
        self.release_identifiers(org_id, &ids, customers).await?;
        self.give_identifiers(org_id, &ids, customers).await
    }

    /// Removes the identifiers that customers give up, before others get them. With deferred constraints one statement would do, but
    /// then `on conflict do nothing`, with which requests create customers, would fail.
    async fn release_identifiers(
        &mut self,
        org_id: OrgId,
        ids: &[&str],
        customers: &[&CustomerPlan],
    ) -> Result<(), DbError> {
        let is_kept = |index: usize| -> Vec<bool> {
            customers.iter().map(|customer| customer.identifiers[index] == IdentifierPlan::Kept).collect()
        };
        sqlx::query(
            "update customer c
                set mobile = case when t.keeps_mobile then c.mobile end, email = case when t.keeps_email then c.email end,
                    external_id = case when t.keeps_external_id then c.external_id end
               from unnest($2::text[], $3::boolean[], $4::boolean[], $5::boolean[])
                    as t (customer_id, keeps_mobile, keeps_email, keeps_external_id)
              where c.org_id = $1 and c.customer_id = t.customer_id
                and (c.mobile is not null and not t.keeps_mobile or c.email is not null and not t.keeps_email
                     or c.external_id is not null and not t.keeps_external_id)",
        )
        .bind(org_id.0)
        .bind(ids)
        .bind(is_kept(0))
        .bind(is_kept(1))
        .bind(is_kept(2))
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    async fn give_identifiers(
        &mut self,
        org_id: OrgId,
        ids: &[&str],
        customers: &[&CustomerPlan],
    ) -> Result<(), DbError> {
        let [mobiles, emails, external_ids] = given(|| customers.iter().copied());
        sqlx::query(
            "update customer c
                set mobile = coalesce(t.mobile, c.mobile), email = coalesce(t.email, c.email),
                    external_id = coalesce(t.external_id, c.external_id)
               from unnest($2::text[], $3::text[], $4::text[], $5::text[]) as t (customer_id, mobile, email, external_id)
              where c.org_id = $1 and c.customer_id = t.customer_id
                and (t.mobile is not null or t.email is not null or t.external_id is not null)",
        )
        .bind(org_id.0)
        .bind(ids)
        .bind(mobiles)
        .bind(emails)
        .bind(external_ids)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }
}

/// The identifiers that the plan gives to each customer, in the order of [`IdentifierPlan::NAMES`].
fn given<'a, I: Iterator<Item = &'a CustomerPlan>>(customers: impl Fn() -> I) -> [Vec<Option<&'a str>>; 3] {
    std::array::from_fn(|index| {
        let value = |customer: &'a CustomerPlan| match &customer.identifiers[index] {
            IdentifierPlan::Given { value, .. } => Some(value.as_str()),
            IdentifierPlan::Kept | IdentifierPlan::Withdrawn => None,
        };
        customers().map(value).collect()
    })
}

/// Whether a concurrent request prevented the write of customers: it gave one of the identifiers to somebody, or the two deadlocked.
#[must_use]
pub fn is_overtaken(error: &DbError) -> bool {
    let DbError::Failed(sqlx::Error::Database(database)) = error else { return false };
    let is_deadlock = database.code().is_some_and(|code| code == "40P01");
    is_deadlock || matches!(database.constraint(), Some("customer_mobile" | "customer_email" | "customer_external_id"))
}
