-- SPDX-License-Identifier: BSD-3-Clause
--
-- A job_submit.lua for a site that has none. A site that has one adds the two marked lines to it.

local torpor = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "torpor.lua") -- marked

function slurm_job_submit(job, partitions, uid)
	return torpor.job_submit(job) -- marked
end

function slurm_job_modify(job, record, partitions, uid)
	return slurm.SUCCESS
end

return slurm.SUCCESS
