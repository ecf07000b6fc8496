// The sharp pipeline of bench_images.py; the same messages as python.py. One thread, no cache, libuv's default pool:
// CPU is measured, and process.cpuUsage() counts every thread.
const fs = require('fs');
const readline = require('readline');
const sharp = require('sharp');

sharp.concurrency(1);
sharp.cache(false);
const send = (message) => process.stdout.write(JSON.stringify(message) + '\n');

async function resize(data, width, height, format, quality) {
  const gif = data.subarray(0, 3).toString() === 'GIF';
  const png = data[0] === 0x89;
  const image = sharp(data, { animated: gif }).resize(width, height, { fit: 'fill' });
  if (format) return image.toFormat(format, { quality }).toBuffer();
  if (gif) return image.gif().toBuffer();
  return (png ? image.png() : image.jpeg({ quality: 75 })).toBuffer();
}

(async () => {
  send({ ready: `sharp ${sharp.versions.sharp}, libvips ${sharp.versions.vips}, node ${process.versions.node}` });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const job = JSON.parse(line);
    const data = fs.readFileSync(job.path);
    const before = process.cpuUsage();
    try {
      const answer = await resize(data, job.width, job.height, job.format, job.quality);
      const spent = process.cpuUsage(before);
      if (job.out) fs.writeFileSync(job.out, answer);
      send({ cpu: (spent.user + spent.system) / 1e6, bytes: answer.length });
    } catch (error) {
      send({ error: String(error.message).slice(0, 120) });
    }
  }
})();
