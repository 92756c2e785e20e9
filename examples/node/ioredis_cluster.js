// Tasks in a cluster, with ioredis. Usage: node ioredis_cluster.js redis://127.0.0.1:7000

import { Cluster, Command } from 'ioredis';

import { Tasks } from './pmcptask.js';
import { showAll, showManyOwners } from './shown.js';

// `call` would send to any node, because ioredis does not know the keys of these commands.
class TaskCommand extends Command {
  // The first word after the name of a command is a key.
  getKeys() {
    return [`${this.args[0]}`];
  }
}

/** @param {Cluster} client */
function tasksOf(client) {
  /** @type {import('./pmcptask.js').Send} */
  const send = async (_key, _isRead, [command, ...words]) =>
    client.sendCommand(new TaskCommand(command, words, { replyEncoding: 'utf8' }));
  return new Tasks(send, { hashTags: true });
}

// ioredis would send a write again whose reply is lost. A cas can then conflict with itself.
const client = new Cluster([process.argv[2]], { retryDelayOnFailover: 0 });
// A wait needs a connection of its own, because it holds up the calls behind it.
const waitingClient = client.duplicate();

await showAll(tasksOf(client), tasksOf(waitingClient));
await showManyOwners(tasksOf(client));
client.disconnect();
waitingClient.disconnect();
