-- SPDX-License-Identifier: BSD-3-Clause
--
-- The part of a site's job_submit.lua and cli_filter.lua for jobs whose script calls `torpor run`: it sets the options
-- that users would otherwise have to remember. Both plugins load it with dofile(); see docs/slurm-admin.md.

local torpor = {}

-- Whether a batch script calls `torpor run`: in a line that is no comment, by name or by path.
function torpor.is_used(script)
	for line in script:gmatch("[^\n]+") do
		if not line:match("^%s*#") and (" " .. line):match("[%s/'\"]torpor['\"]?%s+run%s") then
			return true
		end
	end
	return false
end

local function is_set(value)
	return value ~= nil and value ~= slurm.NO_VAL16 and value ~= slurm.NO_VAL
end

-- In slurm_job_submit, on the controller: such a job may be requeued, and one that cannot be saved is refused with the
-- reason. Every other job is left alone. Returns what slurm_job_submit is to return.
function torpor.job_submit(job)
	if job.script == nil or not torpor.is_used(job.script) then
		return slurm.SUCCESS
	end
	local reasons = {}
	if is_set(job.min_nodes) and job.min_nodes > 1 then
		table.insert(reasons, job.min_nodes .. " nodes: a snapshot holds the processes of one node; connections between "
			.. "nodes (MPI) are not saved; use --nodes=1, or the application's own checkpoints")
	end
	for _, field in ipairs({"tres_per_job", "tres_per_node", "tres_per_socket", "tres_per_task"}) do
		if job[field] ~= nil and job[field]:match("gpu") then
			table.insert(reasons, "GPUs (" .. job[field] .. "): the memory of a GPU is not saved; request no GPU, "
				.. "or do not use torpor run")
		end
	end
	if job.requeue == 0 then
		table.insert(reasons, "--no-requeue: a preempted job can only go on if it is requeued; remove it")
	end
	if #reasons > 0 then
		slurm.log_user("this job cannot be saved by torpor:\n- %s", table.concat(reasons, "\n- "))
		return slurm.ERROR
	end
	job.requeue = 1
	return slurm.SUCCESS
end

-- In slurm_cli_pre_submit, within sbatch: the output of such a job is appended to when it is requeued, and it may be
-- requeued. What the user chose stands. A script on standard input is not seen here.
function torpor.cli_filter(options)
	if options["type"] ~= "sbatch" then
		return slurm.SUCCESS
	end
	local script = options["wrap"]
	if script == nil and options["argv"] ~= nil and options["argv"][1] ~= nil then
		local file = io.open(options["argv"][1])
		script = file and file:read("*a")
		if file then
			file:close()
		end
	end
	if script == nil or not torpor.is_used(script .. "\n") then
		return slurm.SUCCESS
	end
	if options["open-mode"] == nil or options["open-mode"] == "unset" then
		options["open-mode"] = "append"
	end
	if options["requeue"] == "unset" then
		options["requeue"] = ""
	end
	return slurm.SUCCESS
end

return torpor
