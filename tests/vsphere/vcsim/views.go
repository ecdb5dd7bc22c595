package main

import (
	"context"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// viewManager makes list views that can be changed while somebody waits for updates of what is in them.
//
// The library tells filters of a change while it has the view locked, and a filter looks at its view while it has
// itself locked: when both happen at once, neither ever ends, nor does any client hear of anything again.
type viewManager struct {
	*simulator.ViewManager
}

// ListView has this name because objects are known to clients by those of their types.
type ListView struct {
	mo.ListView
}

func (m *viewManager) CreateListView(ctx *simulator.Context, req *types.CreateListView) soap.HasFault {
	body := new(methods.CreateListViewBody)
	list := new(ListView)
	if unresolved := list.add(ctx, req.Obj); len(unresolved) != 0 {
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: unresolved[0]})
		return body
	}
	ctx.Session.Put(list)
	body.Res = &types.CreateListViewResponse{Returnval: list.Self}
	return body
}

func (v *ListView) ModifyListView(ctx *simulator.Context, req *types.ModifyListView) soap.HasFault {
	unresolved := v.add(ctx, req.Add)
	for _, ref := range req.Remove {
		simulator.RemoveReference(&v.View, ref)
	}
	if len(req.Add)+len(req.Remove) != 0 {
		// Once the view is not locked any more. What is in it now is looked at by those who are told.
		told := &simulator.Context{Context: context.Background(), Session: ctx.Session, Map: ctx.Map}
		go told.Map.Update(told, v, nil)
	}
	return &methods.ModifyListViewBody{Res: &types.ModifyListViewResponse{Returnval: unresolved}}
}

func (v *ListView) DestroyView(ctx *simulator.Context, req *types.DestroyView) soap.HasFault {
	ctx.Session.Remove(ctx, req.This)
	return &methods.DestroyViewBody{Res: new(types.DestroyViewResponse)}
}

// add returns what is not there.
func (v *ListView) add(ctx *simulator.Context, refs []types.ManagedObjectReference) []types.ManagedObjectReference {
	var unresolved []types.ManagedObjectReference
	for _, ref := range refs {
		if ctx.Session.Get(ref) == nil {
			unresolved = append(unresolved, ref)
		}
		v.View = append(v.View, ref)
	}
	return unresolved
}
