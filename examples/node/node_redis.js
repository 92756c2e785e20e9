// Tasks on one server, with node-redis. Usage: node node_redis.js redis://127.0.0.1:6380

import { createClient } from 'redis';

import { Tasks } from './pmcptask.js';
import { showAll } from './shown.js';

const url = process.argv[2];

const client = await createClient({ url }).on('error', console.error).connect();
const tasks = new Tasks((_key, _isRead, words) => client.sendCommand(words));
// A wait needs a connection of its own, because it holds up the calls behind it.
const waitingClient = await client.duplicate().on('error', console.error).connect();
const waiting = new Tasks((_key, _isRead, words) => waitingClient.sendCommand(words));

await showAll(tasks, waiting);
await Promise.all([client.close(), waitingClient.close()]);
