// Tasks on one server, with ioredis. Usage: node ioredis.js redis://127.0.0.1:6380

import { Redis } from 'ioredis';

import { Tasks } from './pmcptask.js';
import { showAll } from './shown.js';

/** @param {Redis} client */
function tasksOf(client) {
  return new Tasks((_key, _isRead, [command, ...words]) => client.call(command, ...words));
}

// ioredis would send a write again whose reply is lost. A cas can then conflict with itself.
const client = new Redis(process.argv[2], { maxRetriesPerRequest: 0 });
// A wait needs a connection of its own, because it holds up the calls behind it.
const waitingClient = client.duplicate();

await showAll(tasksOf(client), tasksOf(waitingClient));
client.disconnect();
waitingClient.disconnect();
