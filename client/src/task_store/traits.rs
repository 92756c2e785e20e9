//! The two traits. Each call runs upstream's code: a read over the record that was read, a change over [`Attempt`](super::attempt::Attempt).

use std::collections::HashMap;

use async_trait::async_trait;
use pmcp::server::task_store as server;
use pmcp::server::task_store::{TaskInputDelivery, TaskInputSnapshot, TaskStoreError};
use pmcp::types::CallToolResult;
use pmcp::types::mrtr::{InputRequests, InputResponses};
use pmcp::types::tasks::{Task, TaskStatus as ServerStatus};
use pmcp_tasks::{ListTasksOptions, StoreConfig, TaskError, TaskPage, TaskRecord, TaskStatus};
use serde_json::Value;

use super::TaskStore;
use super::found::Found;
use super::records::Page;

/// The tasks of a page, as pmcp's own stores have them.
const SERVER_PAGE: usize = 20;
/// The tasks of a page of `pmcp_tasks::TaskStore::list`, unless it is told otherwise.
const PAGE: usize = 50;

impl TaskStore {
    /// Upstream's store over a page, and the cursor of the next page.
    async fn over_page(
        &self,
        owner_id: &str,
        cursor: Option<&str>,
        limit: usize,
    ) -> (pmcp_tasks::ServerTaskStore<Found>, Option<String>) {
        match self.records.page(owner_id, cursor, limit).await {
            Ok(Page { tasks, next }) => (self.over(Found::page(Ok(tasks))), next),
            Err(error) => (self.over(Found::page(Err(error))), None),
        }
    }
}

#[async_trait]
impl server::TaskStore for TaskStore {
    async fn create(&self, owner_id: &str, ttl: Option<u64>) -> Result<Task, TaskStoreError> {
        self.change(|store| async move { store.create(owner_id, ttl).await }).await
    }

    async fn get(&self, task_id: &str, owner_id: &str) -> Result<Task, TaskStoreError> {
        self.over_task(task_id, owner_id).await.get(task_id, owner_id).await
    }

    async fn update_status(
        &self,
        task_id: &str,
        owner_id: &str,
        status: ServerStatus,
        message: Option<String>,
    ) -> Result<Task, TaskStoreError> {
        self.change(|store| {
            let message = message.clone();
            async move { store.update_status(task_id, owner_id, status, message).await }
        })
        .await
    }

    async fn list(
        &self,
        owner_id: &str,
        cursor: Option<&str>,
    ) -> Result<(Vec<Task>, Option<String>), TaskStoreError> {
        let (store, next) = self.over_page(owner_id, cursor, SERVER_PAGE).await;
        let (tasks, _) = store.list(owner_id, None).await?;
        Ok((tasks, next))
    }

    async fn cancel(&self, task_id: &str, owner_id: &str) -> Result<Task, TaskStoreError> {
        self.change(|store| async move { store.cancel(task_id, owner_id).await }).await
    }

    /// Always 0: the server expires tasks.
    async fn cleanup_expired(&self) -> Result<usize, TaskStoreError> {
        Ok(0)
    }

    fn config(&self) -> &server::StoreConfig {
        &self.server_config
    }

    async fn set_result(
        &self,
        task_id: &str,
        owner_id: &str,
        result: CallToolResult,
    ) -> Result<(), TaskStoreError> {
        self.change(|store| {
            let result = result.clone();
            async move { store.set_result(task_id, owner_id, result).await }
        })
        .await
    }

    async fn get_result(&self, task_id: &str, owner_id: &str) -> Result<CallToolResult, TaskStoreError> {
        self.over_result(task_id, owner_id).await.get_result(task_id, owner_id).await
    }

    fn supports_results(&self) -> bool {
        true
    }

    async fn deliver_task_inputs(
        &self,
        task_id: &str,
        owner_id: &str,
        responses: InputResponses,
    ) -> Result<TaskInputDelivery, TaskStoreError> {
        self.change(|store| {
            let responses = responses.clone();
            async move { store.deliver_task_inputs(task_id, owner_id, responses).await }
        })
        .await
    }

    async fn task_input_snapshot(
        &self,
        task_id: &str,
        owner_id: &str,
    ) -> Result<TaskInputSnapshot, TaskStoreError> {
        self.over_task(task_id, owner_id).await.task_input_snapshot(task_id, owner_id).await
    }

    async fn record_input_requests(
        &self,
        task_id: &str,
        owner_id: &str,
        requests: InputRequests,
    ) -> Result<Task, TaskStoreError> {
        self.change(|store| {
            let requests = requests.clone();
            async move { store.record_input_requests(task_id, owner_id, requests).await }
        })
        .await
    }

    async fn set_error(&self, task_id: &str, owner_id: &str, error: Value) -> Result<(), TaskStoreError> {
        self.change(|store| {
            let error = error.clone();
            async move { store.set_error(task_id, owner_id, error).await }
        })
        .await
    }

    async fn get_error(&self, task_id: &str, owner_id: &str) -> Result<Value, TaskStoreError> {
        self.over_task(task_id, owner_id).await.get_error(task_id, owner_id).await
    }

    fn supports_inputs(&self) -> bool {
        true
    }

    async fn set_status_message(
        &self,
        task_id: &str,
        owner_id: &str,
        message: Option<String>,
    ) -> Result<Task, TaskStoreError> {
        self.change(|store| {
            let message = message.clone();
            async move { store.set_status_message(task_id, owner_id, message).await }
        })
        .await
    }
}

#[async_trait]
impl pmcp_tasks::TaskStore for TaskStore {
    async fn create(
        &self,
        owner_id: &str,
        request_method: &str,
        ttl: Option<u64>,
    ) -> Result<TaskRecord, TaskError> {
        self.change(|store| async move { store.inner().create(owner_id, request_method, ttl).await }).await
    }

    async fn get(&self, task_id: &str, owner_id: &str) -> Result<TaskRecord, TaskError> {
        self.over_task(task_id, owner_id).await.inner().get(task_id, owner_id).await
    }

    async fn update_status(
        &self,
        task_id: &str,
        owner_id: &str,
        new_status: TaskStatus,
        status_message: Option<String>,
    ) -> Result<TaskRecord, TaskError> {
        self.change(|store| {
            let status_message = status_message.clone();
            async move { store.inner().update_status(task_id, owner_id, new_status, status_message).await }
        })
        .await
    }

    async fn set_variables(
        &self,
        task_id: &str,
        owner_id: &str,
        variables: HashMap<String, Value>,
    ) -> Result<TaskRecord, TaskError> {
        self.change(|store| {
            let variables = variables.clone();
            async move { store.inner().set_variables(task_id, owner_id, variables).await }
        })
        .await
    }

    async fn set_result(&self, task_id: &str, owner_id: &str, result: Value) -> Result<(), TaskError> {
        self.change(|store| {
            let result = result.clone();
            async move { store.inner().set_result(task_id, owner_id, result).await }
        })
        .await
    }

    async fn get_result(&self, task_id: &str, owner_id: &str) -> Result<Value, TaskError> {
        self.over_result(task_id, owner_id).await.inner().get_result(task_id, owner_id).await
    }

    async fn complete_with_result(
        &self,
        task_id: &str,
        owner_id: &str,
        status: TaskStatus,
        status_message: Option<String>,
        result: Value,
    ) -> Result<TaskRecord, TaskError> {
        self.change(|store| {
            let status_message = status_message.clone();
            let result = result.clone();
            async move {
                store.inner().complete_with_result(task_id, owner_id, status, status_message, result).await
            }
        })
        .await
    }

    async fn list(&self, options: ListTasksOptions) -> Result<TaskPage, TaskError> {
        let ListTasksOptions { owner_id, cursor, limit } = options;
        let limit = limit.unwrap_or(PAGE);
        let (store, next_cursor) = self.over_page(&owner_id, cursor.as_deref(), limit).await;
        let page =
            store.inner().list(ListTasksOptions { owner_id, cursor: None, limit: Some(limit) }).await?;
        Ok(TaskPage { next_cursor, ..page })
    }

    async fn cancel(&self, task_id: &str, owner_id: &str) -> Result<TaskRecord, TaskError> {
        self.change(|store| async move { store.inner().cancel(task_id, owner_id).await }).await
    }

    /// Always 0: the server expires tasks.
    async fn cleanup_expired(&self) -> Result<usize, TaskError> {
        Ok(0)
    }

    fn config(&self) -> &StoreConfig {
        &self.config
    }

    async fn deliver_inputs(
        &self,
        task_id: &str,
        owner_id: &str,
        responses: Value,
    ) -> Result<Value, TaskError> {
        self.change(|store| {
            let responses = responses.clone();
            async move { store.inner().deliver_inputs(task_id, owner_id, responses).await }
        })
        .await
    }

    async fn task_input_snapshot(&self, task_id: &str, owner_id: &str) -> Result<Value, TaskError> {
        self.over_task(task_id, owner_id).await.inner().task_input_snapshot(task_id, owner_id).await
    }

    async fn record_input_requests(
        &self,
        task_id: &str,
        owner_id: &str,
        requests: Value,
    ) -> Result<Value, TaskError> {
        self.change(|store| {
            let requests = requests.clone();
            async move { store.inner().record_input_requests(task_id, owner_id, requests).await }
        })
        .await
    }

    async fn set_error(&self, task_id: &str, owner_id: &str, error: Value) -> Result<(), TaskError> {
        self.change(|store| {
            let error = error.clone();
            async move { store.inner().set_error(task_id, owner_id, error).await }
        })
        .await
    }

    async fn get_error(&self, task_id: &str, owner_id: &str) -> Result<Value, TaskError> {
        self.over_task(task_id, owner_id).await.inner().get_error(task_id, owner_id).await
    }
}
