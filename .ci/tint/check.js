// Gives shaders to tint, Chrome's compiler of WGSL, as the package `webgpu` (Dawn for Node) brings it.
//
//     node check.js SHADERS SOURCES...
//
// SHADERS is where the tests write the text of every shader, each in a file named by its kernel; SOURCES are Rust, whose
// kernels must all be there. Nothing runs and no driver is needed. Of each text a device must accept every character, but:
// - `enable subgroups;` goes in front where subgroups are used: the standard asks for it, naga does not know it yet;
// - what uses naga's own cooperative matrices is left out, and counted.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { create } from 'webgpu';

const SHOWN = 10;
const [shaders, ...sources] = process.argv.slice(2);
const files = (folder, end) => readdirSync(folder, { recursive: true }).filter((file) => file.endsWith(end)).sort();
// Dawn ends when its first object is collected, whatever else is in use: a global keeps it
globalThis.gpu = create(['backend=null']);
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures: ['shader-f16', 'subgroups'] });

const kernels = new Set();
const count = { accepted: 0, subgroups: 0, leftOut: 0, warnings: 0 };
const faults = [];
for (const file of files(shaders, '.wgsl')) {
    let code = readFileSync(join(shaders, file), 'utf8');
    kernels.add(/([^/\\]+)-[0-9a-f]{16}\.wgsl$/.exec(file)[1]);
    if (code.includes('enable wgpu_cooperative_matrix;')) {
        count.leftOut++;
        continue;
    }
    if (/\bsubgroup/.test(code)) {
        code = `enable subgroups; ${code}`;
        count.subgroups++;
    }
    device.pushErrorScope('validation');
    const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
    const error = await device.popErrorScope();
    if (error) faults.push(`${file}: ${error.message}`);
    else count.accepted++;
    const warnings = messages.filter((message) => message.type === 'warning');
    warnings.forEach(({ lineNum, message }) => console.log(`${file}:${lineNum}: warning: ${message}`));
    count.warnings += warnings.length;
}

const named = new Set();
for (const folder of sources) {
    for (const file of files(folder, '.rs').filter((file) => !file.endsWith('tests.rs'))) {
        const text = readFileSync(join(folder, file), 'utf8').split('#[cfg(test)]')[0];
        const calls = [...text.matchAll(/\b(?:Kernel::new|kernel|tiles!)\(\s*"([^"]+)"/g)];
        // in the tables of elementwise operations a kernel has the name of its row
        const rows = text.includes('stringify!($name)') ? [...text.matchAll(/^ {4}([a-z0-9_]+)(?:\([^)]*\))?: \{$/gm)] : [];
        for (const [, name] of [...calls, ...rows]) {
            named.add(name);
            if (!kernels.has(name)) faults.push(`${join(folder, file)}: no test wrote a shader of "${name}"`);
        }
    }
}

if (named.size < 100) faults.push(`only ${named.size} kernels were found in the sources, expected 100 or more`);

faults.slice(0, SHOWN).forEach((fault) => console.error(fault));
if (faults.length > SHOWN) console.error(`and ${faults.length - SHOWN} more like these`);
console.log(
    `tint accepts ${count.accepted} shaders of ${kernels.size} kernels, ${count.subgroups} with subgroups, ` +
        `with ${count.warnings} warnings and ${faults.length} faults; ` +
        `left out, for they use naga's own cooperative matrices: ${count.leftOut}`,
);
process.exit(faults.length > 0 || count.accepted === 0 ? 1 : 0);
