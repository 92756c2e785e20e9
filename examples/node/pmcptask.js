// PMCPTASK commands for node-redis and ioredis, with types. Copy this file into your program.

/** @typedef {{ version: number, data: string }} Task */
/** @typedef {{ outcome: 'OK' | 'CONFLICT' | 'MISSING', version: number }} Written the actual version of a conflict */
/** @typedef {{ taskId: string, version: number, createdMs: number, data: string }} Listed */
/** @typedef {{ outcome: 'OK', task: Task } | { outcome: 'MISSING' | 'UNCHANGED' }} Waited */

/**
 * Sends the words of a command to the server, or to the node that has the key.
 * @callback Send
 * @param {string} key
 * @param {boolean} isRead
 * @param {string[]} words
 * @returns {Promise<any>}
 */

export class Tasks {
  #send;
  #prefix;
  #hashTags;

  /**
   * A cluster needs `hashTags`: they put all keys of an owner on one node.
   * @param {Send} send
   * @param {{ prefix?: string, hashTags?: boolean }} [options]
   */
  constructor(send, { prefix = 'pmcp', hashTags = false } = {}) {
    this.#send = send;
    this.#prefix = prefix;
    this.#hashTags = hashTags;
  }

  /**
   * Writes a task, whatever its version. The reply is the new version.
   * @param {string} owner
   * @param {string} taskId
   * @param {string} data
   * @returns {Promise<number>}
   */
  put(owner, taskId, data) {
    const [task, index] = [this.#taskKey(owner, taskId), this.#indexKey(owner)];
    return this.#send(task, false, ['PMCPTASK.PUT', task, index, data]);
  }

  /**
   * Writes a task if it is at the expected version.
   * @param {string} owner
   * @param {string} taskId
   * @param {number} expected
   * @param {string} data
   * @returns {Promise<Written>}
   */
  async cas(owner, taskId, expected, data) {
    const [task, index] = [this.#taskKey(owner, taskId), this.#indexKey(owner)];
    const [outcome, version] = await this.#send(task, false, ['PMCPTASK.CAS', task, index, `${expected}`, data]);
    return { outcome, version };
  }

  /**
   * @param {string} owner
   * @param {string} taskId
   * @returns {Promise<Task | null>}
   */
  async get(owner, taskId) {
    const task = this.#taskKey(owner, taskId);
    const reply = await this.#send(task, true, ['PMCPTASK.GET', task]);
    return reply && { version: reply[0], data: reply[1] };
  }

  /**
   * A page of an owner's tasks, the oldest first. The next page comes after the last task of this one.
   * @param {string} owner
   * @param {number} count
   * @param {Listed} [after]
   * @returns {Promise<Listed[]>}
   */
  async page(owner, count, after) {
    const index = this.#indexKey(owner);
    const position = after ? ['AFTER', `${after.createdMs}`, after.taskId] : [];
    const reply = await this.#send(index, true, ['PMCPTASK.LIST', index, ...position, 'COUNT', `${count}`]);
    return reply.map(
      (/** @type {[string, number, number, string]} */ [taskId, version, createdMs, data]) =>
        ({ taskId, version, createdMs, data }),
    );
  }

  /**
   * Waits until the task's version is another: UNCHANGED if the time is over before. Nothing else gets through the
   * connection meanwhile.
   * @param {string} owner
   * @param {string} taskId
   * @param {number} version
   * @param {number} timeoutMs
   * @returns {Promise<Waited>}
   */
  async wait(owner, taskId, version, timeoutMs) {
    const task = this.#taskKey(owner, taskId);
    const reply = await this.#send(task, true, ['PMCPTASK.WAIT', task, `${version}`, `${timeoutMs}`]);
    if (reply === null) return { outcome: 'UNCHANGED' };
    const [outcome, newVersion, data] = reply;
    return outcome === 'OK' ? { outcome, task: { version: newVersion, data } } : { outcome };
  }

  /**
   * Removes an owner's tasks but the newest, at most 1,000 in a call. The reply is how many.
   * @param {string} owner
   * @param {number} keep
   * @returns {Promise<number>}
   */
  trim(owner, keep) {
    const index = this.#indexKey(owner);
    return this.#send(index, false, ['PMCPTASK.TRIM', index, 'KEEP', `${keep}`]);
  }

  #taskKey(/** @type {string} */ owner, /** @type {string} */ taskId) {
    return `${this.#prefix}:tasks:${this.#part(owner)}:${taskId}`;
  }

  #indexKey(/** @type {string} */ owner) {
    return `${this.#prefix}:idx:${this.#part(owner)}`;
  }

  #part(/** @type {string} */ owner) {
    if (!this.#hashTags) return owner;
    // Such an owner would make an empty hash tag, which has no effect.
    if (owner === '' || owner.startsWith('}')) return `_{_}${owner}`;
    return `{${owner}}`;
  }
}
