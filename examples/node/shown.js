// What every example of this folder shows. It ends with an error if a reply is not the expected one.

import { deepStrictEqual } from 'node:assert';
import { randomUUID } from 'node:crypto';

/** @typedef {import('./pmcptask.js').Tasks} Tasks */

const WORKING = '{"status":"working"}';
const COMPLETED = '{"status":"completed"}';

/**
 * @param {string} what
 * @param {unknown} got
 * @param {unknown} expected
 */
function check(what, got, expected) {
  deepStrictEqual(got, expected, `${what}: expected ${JSON.stringify(expected)}, got ${JSON.stringify(got)}`);
  console.log(`${what}: ${JSON.stringify(got)}`);
}

/**
 * @param {Tasks} tasks
 * @param {Tasks} waiting
 * @param {string} owner
 */
async function showWaiting(tasks, waiting, owner) {
  const version = await tasks.put(owner, 't1', '{"status":"working"}');
  const waited = waiting.wait(owner, 't1', version, 30_000);
  await tasks.cas(owner, 't1', version, '{"status":"completed"}'); // usually, another process
  const change = await waited;

  check('put', version, 1);
  check('wait, until another client writes', change, { outcome: 'OK', task: { version: 2, data: COMPLETED } });
  check('wait, while nobody writes', await waiting.wait(owner, 't1', 2, 50), { outcome: 'UNCHANGED' });
  check('wait for a task that does not exist', await waiting.wait(owner, 'none', 1, 30_000), { outcome: 'MISSING' });
}

/**
 * @param {Tasks} tasks
 * @param {string} owner
 */
async function showVersions(tasks, owner) {
  check('cas of the version that was read', await tasks.cas(owner, 't1', 2, WORKING), { outcome: 'OK', version: 3 });
  check('cas of an older version', await tasks.cas(owner, 't1', 2, COMPLETED), { outcome: 'CONFLICT', version: 3 });
  const missing = await tasks.cas(owner, 'none', 1, WORKING);
  check('cas of a task that does not exist', missing, { outcome: 'MISSING', version: 0 });
  check('get', await tasks.get(owner, 't1'), { version: 3, data: WORKING });
  check('get of a task that does not exist', await tasks.get(owner, 'none'), null);
}

/**
 * @param {Tasks} tasks
 * @param {string} owner
 */
async function showPages(tasks, owner) {
  for (const taskId of ['t2', 't3', 't4', 't5']) await tasks.put(owner, taskId, WORKING);
  let last;
  for (const expected of [['t1', 't2'], ['t3', 't4'], ['t5'], []]) {
    const page = await tasks.page(owner, 2, last);
    check('list a page', page.map((task) => task.taskId), expected);
    last = page.at(-1);
  }
}

/**
 * @param {Tasks} tasks
 * @param {Tasks} waiting tasks of another connection
 */
export async function showAll(tasks, waiting) {
  const owner = `example-${randomUUID()}`;
  await showWaiting(tasks, waiting, owner);
  await showVersions(tasks, owner);
  await showPages(tasks, owner);
  check('trim', await tasks.trim(owner, 0), 5);
}

/**
 * In a cluster, every node gets many of these calls.
 * @param {Tasks} tasks
 */
export async function showManyOwners(tasks) {
  const owners = Array.from({ length: 300 }, () => `example-${randomUUID()}`);
  const sum = (/** @type {number[]} */ replies) => replies.reduce((total, reply) => total + reply);
  check('puts of 300 owners', sum(await Promise.all(owners.map((owner) => tasks.put(owner, 't1', '{}')))), 300);
  check('trims of 300 owners', sum(await Promise.all(owners.map((owner) => tasks.trim(owner, 0)))), 300);
}
