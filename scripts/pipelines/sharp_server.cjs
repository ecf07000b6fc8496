// A picture service on sharp as one writes it: POST /resize?w=&h= with the picture as the body, a Node cluster of one
// process for each core, each of which resizes one picture for each of its threads. Arguments: the port, the processes.
const cluster = require('cluster');
const http = require('http');
const sharp = require('sharp');

const LARGEST = 32 * 1024 * 1024; // bytes of a body
const [port, processes] = process.argv.slice(2).map(Number);

function answer(response, status, type, body) {
  response.writeHead(status, { 'Content-Type': type, 'Content-Length': body.length });
  response.end(body);
}

async function resize(request, response, target, data) {
  const size = (name) => Number(target.searchParams.get(name)) || undefined;
  const format = target.searchParams.get('format');
  try {
    let image = sharp(data).resize(size('w'), size('h'), { fit: 'fill' });
    if (format) image = image.toFormat(format);
    const made = await image.toBuffer({ resolveWithObject: true });
    answer(response, 200, `image/${made.info.format}`, made.data);
  } catch (error) {
    answer(response, 422, 'text/plain', Buffer.from(String(error.message)));
  }
}

function serve(request, response) {
  const target = new URL(request.url, 'http://localhost');
  if (request.method !== 'POST') return answer(response, 200, 'text/plain', Buffer.from('ok'));
  const parts = [];
  let length = 0;
  request.on('data', (part) => {
    length += part.length;
    if (length > LARGEST) request.destroy();
    else parts.push(part);
  });
  request.on('end', () => resize(request, response, target, Buffer.concat(parts)));
  request.on('error', () => {});
}

if (cluster.isPrimary) {
  for (let index = 0; index < processes; index += 1) cluster.fork();
  cluster.on('exit', () => cluster.fork());
} else {
  sharp.concurrency(1);
  sharp.cache(false);
  http.createServer({ keepAliveTimeout: 60000 }, serve).listen(port, '127.0.0.1', 1024);
}
